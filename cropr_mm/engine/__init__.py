"""What hooks into mmengine's training: losses, curriculum, retrofit, distillation, optimizer groups, FSDP, pictures."""

from .bfloat16 import let_mmcv_take_bfloat16
from .cropr_hook import CroprHook
from .distillation import Distilled
from .fsdp import CroprFSDPStrategy, wrap_vit_blocks
from .layer_decay import CroprLayerDecayOptimWrapperConstructor
from .oracle_hook import OracleHook
from .token_visualization_hook import TokenVisualizationHook

__all__ = [
    'CroprFSDPStrategy',
    'CroprHook',
    'CroprLayerDecayOptimWrapperConstructor',
    'Distilled',
    'OracleHook',
    'TokenVisualizationHook',
    'let_mmcv_take_bfloat16',
    'wrap_vit_blocks',
]
