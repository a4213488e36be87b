"""Token pruning for plain Vision Transformers on dense prediction, for OpenMMLab.

Importing the package registers everything in mmengine's root registries:
``custom_imports = dict(imports=['cropr_mm'])``.
"""

from .engine import CroprHook, allow_mmengine_checkpoints
from .models import (
    AttentionPruner,
    BasePruner,
    CroprPruner,
    CroprViT,
    MultiLabelAuxHead,
    PatchSegAuxHead,
    RandomPruner,
    Schedule,
    SimpleFeaturePyramid,
    TokenReinsertion,
    VariancePruner,
)
from .tokens import SparseFeature
from .version import __version__

allow_mmengine_checkpoints()

__all__ = [
    'AttentionPruner',
    'BasePruner',
    'CroprHook',
    'CroprPruner',
    'CroprViT',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'SimpleFeaturePyramid',
    'SparseFeature',
    'TokenReinsertion',
    'VariancePruner',
    '__version__',
]
