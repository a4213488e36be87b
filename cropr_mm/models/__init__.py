from .necks import SimpleFeaturePyramid, TokenPooling, TokenReinsertion
from .pruning import (
    AttentionPruner,
    BasePruner,
    ClsAuxHead,
    CroprPruner,
    DifficultyPruner,
    MultiLabelAuxHead,
    PatchSegAuxHead,
    RandomPruner,
    Schedule,
    VariancePruner,
)
from .vit import CroprViT

__all__ = [
    'AttentionPruner',
    'BasePruner',
    'ClsAuxHead',
    'CroprPruner',
    'CroprViT',
    'DifficultyPruner',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'SimpleFeaturePyramid',
    'TokenPooling',
    'TokenReinsertion',
    'VariancePruner',
]
