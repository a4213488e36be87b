from .necks import SimpleFeaturePyramid, StandInPyramid, TokenPooling, TokenReinsertion
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
    'StandInPyramid',
    'TokenPooling',
    'TokenReinsertion',
    'VariancePruner',
]
