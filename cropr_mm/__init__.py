"""Token pruning for plain Vision Transformers on dense prediction, for OpenMMLab.

Importing the package registers everything in mmengine's root registries:
``custom_imports = dict(imports=['cropr_mm'])``.
"""

from . import engine, models
from .checkpoint.addresses import protect_mmengine
from .cuda_graphs import use_cuda_graphs
from .engine import *  # noqa: F403
from .models import *  # noqa: F403
from .swap import swap_backbone
from .tokens import Removed, SparseFeature, Tokens
from .utils.compat import let_mmengine_find_mmseg
from .version import __version__

protect_mmengine()
let_mmengine_find_mmseg()

__all__ = [
    'Removed',
    'SparseFeature',
    'Tokens',
    '__version__',
    'swap_backbone',
    'use_cuda_graphs',
    *engine.__all__,
    *models.__all__,
]
