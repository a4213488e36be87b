from .necks import SimpleFeaturePyramid, TokenPooling, TokenReinsertion
from .pruning import (
    AttentionPruner,
    BasePruner,
    ClsAuxHead,
    CroprPruner,
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
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'SimpleFeaturePyramid',
    'TokenPooling',
    'TokenReinsertion',
    'VariancePruner',
]
