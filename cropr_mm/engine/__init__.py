from .cropr_hook import CroprHook
from .layer_decay import CroprLayerDecayOptimWrapperConstructor
from .safe_load import allow_mmengine_checkpoints, allow_safetensors, check_checkpoint

__all__ = [
    'CroprHook',
    'CroprLayerDecayOptimWrapperConstructor',
    'allow_mmengine_checkpoints',
    'allow_safetensors',
    'check_checkpoint',
]
