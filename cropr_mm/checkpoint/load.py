"""Pretrained weights of plain Vision Transformers into a CroprViT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from torch import Tensor

from .resize import resize_patch_embedding, resize_position_embedding

if TYPE_CHECKING:
    from ..models.vit import CroprViT

WRAPPERS = ('state_dict', 'model')
PREFIXES = ('backbone.', 'module.')
# Parts of published checkpoints that a backbone has no place for: classifiers, decoders' leftovers, cached angles.
IGNORED = ('head.', 'head_dist.', 'fc_norm.', 'rope.', 'mask_token')


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or torch file, or from an address that mmengine knows.

    Pickled code is never run (``weights_only``).

    Args:
        path: the file. ``state_dict`` / ``model`` around the weights and ``backbone.`` / ``module.`` in front of
            every name are taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, refused or holds no weights.
    """
    if '://' in path:
        state: Any = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    elif not Path(path).is_file():
        raise FileNotFoundError(f'init_cfg.checkpoint={path!r}: there is no such file')
    else:
        state = _read_file(path)
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    weights = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not weights:
        raise ValueError(
            f'{path}: holds no weights (a dict of tensors, perhaps under {" or ".join(WRAPPERS)}, is expected)'
        )
    for prefix in PREFIXES:
        inside = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
        weights = inside or weights
    return weights


def _read_file(path: str) -> Any:
    try:
        if path.endswith('.safetensors'):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # every reader has its own exceptions for a damaged file
        raise ValueError(
            f'{path}: cannot be read as a checkpoint; the file is damaged, cut short, or holds more than '
            f'weights ({type(error).__name__}: {next(iter(str(error).splitlines()), "")})'
        ) from error


def load_vit_weights(model: CroprViT, path: str) -> None:
    """Load pretrained weights in timm's layout; pruners keep their initial values unless the file has them.

    Position and patch embedding are resized (bicubic) where the sizes differ.

    Args:
        model: the backbone.
        path: see :func:`read_state_dict`.

    Raises:
        ValueError: weights are missing, left over or of another shape; all of them are listed, and the model is
            left as it was.
    """
    state = read_state_dict(path)
    if 'norm.weight' not in state and 'fc_norm.weight' in state:
        # timm renames the final norm of models that pool by average.
        state.update({f'norm.{k}': state[f'fc_norm.{k}'] for k in ('weight', 'bias')})
    own = model.state_dict()
    for key, resize in (('pos_embed', _resize_position), ('patch_embed.proj.weight', _resize_patch)):
        if key in state and state[key].shape != own[key].shape and state[key].ndim == own[key].ndim:
            state[key] = resize(state[key], model, path)
    pruned = any(k.startswith('pruners.') for k in state)  # then all of them are wanted, not the first few
    missing = [k for k in own if k not in state and (pruned or not k.startswith('pruners.'))]
    extra = [
        k
        for k in state
        if k not in own
        and not k.startswith(IGNORED)
        and not (isinstance(model.norm, torch.nn.Identity) and k.startswith('norm.'))
    ]
    shapes = [
        f'{k} {tuple(state[k].shape)}, expected {tuple(own[k].shape)}'
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        parts = (('missing', missing), ('left over', extra), ('of another shape', shapes))
        listed = '; '.join(f'{what}: {_shorten(keys)}' for what, keys in parts if keys)
        raise ValueError(f'{path}: does not fit arch {model.arch} ({listed})')
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    MMLogger.get_current_instance().info(f'CroprViT: loaded {sum(k in own for k in state)} tensors from {path}')


def _shorten(keys: list[str], limit: int = 12) -> str:
    return ', '.join(keys[:limit]) + (f' and {len(keys) - limit} more' if len(keys) > limit else '')


def _resize_position(pos_embed: Tensor, model: CroprViT, path: str) -> Tensor:
    prefix = model.num_prefix_tokens
    side = math.isqrt(max(pos_embed.shape[1] - prefix, 0))
    if not side or side * side + prefix != pos_embed.shape[1]:
        raise ValueError(f'{path}: pos_embed {tuple(pos_embed.shape)} is no square grid behind {prefix} prefix tokens')
    return resize_position_embedding(pos_embed, (side, side), model.grid, prefix)


def _resize_patch(weight: Tensor, model: CroprViT, path: str) -> Tensor:
    return resize_patch_embedding(weight, model.patch_size)
