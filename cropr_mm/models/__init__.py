from .necks import SimpleFeaturePyramid, TokenReinsertion
from .pruning import BasePruner, CroprPruner, MultiLabelAuxHead, PatchSegAuxHead, RandomPruner, Schedule
from .vit import CroprViT

__all__ = [
    'BasePruner',
    'CroprPruner',
    'CroprViT',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'SimpleFeaturePyramid',
    'TokenReinsertion',
]
