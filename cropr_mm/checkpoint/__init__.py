"""The one door for checkpoints, in the order in which a file passes through.

``addresses`` (where it lies) → ``read`` (the one function that opens, with ``archive`` and ``unpickle``) → for an
``init_cfg``: ``locate`` (the ViT in it) → ``layouts`` (its names) → ``fit`` (its shapes, with ``resize`` and ``rope``)
→ ``load``; for everything else: ``whole_model``, and ``state_dict``, by which a backbone refuses what does not fit.
``names`` and ``pruners`` know what weights are called.
"""

from .load import load_init_cfg, load_vit_weights
from .locate import read_state_dict, read_weights
from .read import CheckpointError, check_checkpoint
from .resize import resize_patch_embedding, resize_position_embedding
from .whole_model import load_every_parameter, load_strictly, read_checkpoint, save_weights, weights_of

__all__ = [
    'CheckpointError',
    'check_checkpoint',
    'load_every_parameter',
    'load_init_cfg',
    'load_strictly',
    'load_vit_weights',
    'read_checkpoint',
    'read_state_dict',
    'read_weights',
    'resize_patch_embedding',
    'resize_position_embedding',
    'save_weights',
    'weights_of',
]
