from .bfloat16 import let_mmcv_take_bfloat16
from .cropr_hook import CroprHook
from .fsdp import CroprFSDPStrategy, wrap_vit_blocks
from .layer_decay import CroprLayerDecayOptimWrapperConstructor

__all__ = [
    'CroprFSDPStrategy',
    'CroprHook',
    'CroprLayerDecayOptimWrapperConstructor',
    'let_mmcv_take_bfloat16',
    'wrap_vit_blocks',
]
