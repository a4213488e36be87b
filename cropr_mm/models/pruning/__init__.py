from .aux_heads import BaseAuxHead, ClsAuxHead, MultiLabelAuxHead, PatchSegAuxHead
from .base import BasePruner
from .baselines import AttentionPruner, RandomPruner, VariancePruner
from .cropr import CroprPruner
from .difficulty import DifficultyPruner, TokenClassAuxHead
from .schedule import Schedule

__all__ = [
    'AttentionPruner',
    'BaseAuxHead',
    'BasePruner',
    'ClsAuxHead',
    'CroprPruner',
    'DifficultyPruner',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'TokenClassAuxHead',
    'VariancePruner',
]
