from .cropr_hook import CroprHook

__all__ = ['CroprHook']
