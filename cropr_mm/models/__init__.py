from .necks import SimpleFeaturePyramid, TokenReinsertion
from .pruning import (
    AttentionPruner,
    BasePruner,
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
    'CroprPruner',
    'CroprViT',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'SimpleFeaturePyramid',
    'TokenReinsertion',
    'VariancePruner',
]
