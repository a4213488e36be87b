"""Everything that decides which tokens stay. This list is the only one that a new pruner is added to."""

from .algm import ALGMReducer
from .base import BasePruner, BaseReducer, Context
from .baselines import AttentionPruner, RandomPruner, VariancePruner
from .cropr import CroprPruner
from .difficulty import DifficultyPruner
from .expedit import ExpeditReducer
from .oracle import OraclePruner
from .schedule import Schedule
from .supervision import BaseAuxHead, ClsAuxHead, MultiLabelAuxHead, PatchSegAuxHead, TokenClassAuxHead
from .tome import ToMeReducer

__all__ = [
    'ALGMReducer',
    'AttentionPruner',
    'BaseAuxHead',
    'BasePruner',
    'BaseReducer',
    'ClsAuxHead',
    'Context',
    'CroprPruner',
    'DifficultyPruner',
    'ExpeditReducer',
    'MultiLabelAuxHead',
    'OraclePruner',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'ToMeReducer',
    'TokenClassAuxHead',
    'VariancePruner',
]
