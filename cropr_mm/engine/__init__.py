from .cropr_hook import CroprHook
from .safe_load import allow_mmengine_checkpoints, allow_safetensors, check_checkpoint

__all__ = ['CroprHook', 'allow_mmengine_checkpoints', 'allow_safetensors', 'check_checkpoint']
