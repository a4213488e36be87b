from .load import load_vit_weights, read_state_dict
from .resize import resize_patch_embedding, resize_position_embedding

__all__ = ['load_vit_weights', 'read_state_dict', 'resize_patch_embedding', 'resize_position_embedding']
