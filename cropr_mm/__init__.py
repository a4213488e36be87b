"""Token pruning for plain Vision Transformers on dense prediction, for OpenMMLab.

Importing the package registers everything in mmengine's root registries:
``custom_imports = dict(imports=['cropr_mm'])``.
"""

from .checkpoint.read import protect_mmengine
from .compat import let_mmengine_find_mmseg
from .engine import CroprHook, CroprLayerDecayOptimWrapperConstructor
from .models import (
    AttentionPruner,
    BasePruner,
    ClsAuxHead,
    CroprPruner,
    CroprViT,
    DifficultyPruner,
    MultiLabelAuxHead,
    PatchSegAuxHead,
    RandomPruner,
    Schedule,
    SimpleFeaturePyramid,
    StandInPyramid,
    TokenPooling,
    TokenReinsertion,
    VariancePruner,
)
from .swap import swap_backbone
from .tokens import SparseFeature
from .version import __version__

protect_mmengine()
let_mmengine_find_mmseg()

__all__ = [
    'AttentionPruner',
    'BasePruner',
    'ClsAuxHead',
    'CroprHook',
    'CroprLayerDecayOptimWrapperConstructor',
    'CroprPruner',
    'CroprViT',
    'DifficultyPruner',
    'MultiLabelAuxHead',
    'PatchSegAuxHead',
    'RandomPruner',
    'Schedule',
    'SimpleFeaturePyramid',
    'SparseFeature',
    'StandInPyramid',
    'TokenPooling',
    'TokenReinsertion',
    'VariancePruner',
    '__version__',
    'swap_backbone',
]
