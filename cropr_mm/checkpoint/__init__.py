from .load import load_init_cfg, load_vit_weights
from .locate import read_state_dict, read_weights
from .resize import resize_patch_embedding, resize_position_embedding

__all__ = [
    'load_init_cfg',
    'load_vit_weights',
    'read_state_dict',
    'read_weights',
    'resize_patch_embedding',
    'resize_position_embedding',
]
