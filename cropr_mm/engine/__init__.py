from .cropr_hook import CroprHook
from .fsdp import CroprFSDPStrategy, wrap_vit_blocks
from .layer_decay import CroprLayerDecayOptimWrapperConstructor

__all__ = [
    'CroprFSDPStrategy',
    'CroprHook',
    'CroprLayerDecayOptimWrapperConstructor',
    'wrap_vit_blocks',
]
