"""The dense ViT, the pruned one, its pruners and its necks."""

from . import necks, pruning
from .cropr_vit import CroprViT
from .necks import *  # noqa: F403
from .pruning import *  # noqa: F403

__all__ = ['CroprViT', *necks.__all__, *pruning.__all__]
