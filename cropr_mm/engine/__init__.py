from .bfloat16 import let_mmcv_take_bfloat16
from .cropr_hook import CroprHook
from .fsdp import CroprFSDPStrategy, wrap_vit_blocks
from .layer_decay import CroprLayerDecayOptimWrapperConstructor
from .safe_load import allow_mmengine_checkpoints, allow_safetensors, check_checkpoint

__all__ = [
    'CroprFSDPStrategy',
    'CroprHook',
    'CroprLayerDecayOptimWrapperConstructor',
    'allow_mmengine_checkpoints',
    'allow_safetensors',
    'check_checkpoint',
    'let_mmcv_take_bfloat16',
    'wrap_vit_blocks',
]
