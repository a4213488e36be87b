from .aux_heads import BaseAuxHead, MultiLabelAuxHead, PatchSegAuxHead
from .base import BasePruner
from .baselines import AttentionPruner, RandomPruner, VariancePruner
from .cropr import CroprPruner
from .schedule import Schedule

__all__ = [
    'AttentionPruner',
    'BaseAuxHead',
    'BasePruner',
    'CroprPruner',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'VariancePruner',
]
