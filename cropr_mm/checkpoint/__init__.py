from .load import load_vit_weights, read_state_dict

__all__ = ['load_vit_weights', 'read_state_dict']
