"""The dense ViT, the pruned one, its pruners and its necks."""

from . import necks, pruning
from .cropr_vit import CroprViT
from .logit_fusion import LogitFusionHead
from .necks import *  # noqa: F403
from .plain_vit import PlainViT
from .pruning import *  # noqa: F403

__all__ = ['CroprViT', 'LogitFusionHead', 'PlainViT', *necks.__all__, *pruning.__all__]
