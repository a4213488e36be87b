from .aux_heads import BaseAuxHead, ClsAuxHead, MultiLabelAuxHead, PatchSegAuxHead
from .base import BasePruner
from .baselines import AttentionPruner, RandomPruner, VariancePruner
from .cropr import CroprPruner
from .schedule import Schedule

__all__ = [
    'AttentionPruner',
    'BaseAuxHead',
    'BasePruner',
    'ClsAuxHead',
    'CroprPruner',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'VariancePruner',
]
