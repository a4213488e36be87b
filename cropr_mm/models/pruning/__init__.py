from .aux_heads import BaseAuxHead, MultiLabelAuxHead, PatchSegAuxHead
from .pruners import BasePruner, CroprPruner, RandomPruner
from .schedule import Schedule

__all__ = [
    'BaseAuxHead',
    'BasePruner',
    'CroprPruner',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
]
