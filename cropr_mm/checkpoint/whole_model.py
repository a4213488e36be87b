"""The weights of whole models: from a checkpoint file, into a model, and to a file."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.checks import check_suffix
from ..utils.io import whole_file
from .addresses import load_address
from .names import shorten, strip_module, strip_wrappers
from .read import GRIDS

SUFFIXES = ('.pth', '.safetensors')


def weights_of(checkpoint: Any, source: str) -> OrderedDict[str, Tensor]:
    """The weights in a checkpoint of mmengine, without wrappers in their names, and the metadata of the modules.

    Args:
        checkpoint: what a file holds.
        source: the file, for the message.

    Raises:
        ValueError: it, or ``state_dict`` in it, is no dict.
    """
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(state, Mapping):
        where = f'{source}:' if state is checkpoint else f'{source}: state_dict'
        raise ValueError(
            f'{where} holds {type(state).__name__}; a dict of tensors, perhaps under state_dict, is expected'
        )
    named = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    weights: Any = OrderedDict((strip_wrappers(name), value) for name, value in named.items())
    metadata = getattr(state, '_metadata', None)
    if metadata is not None:
        weights._metadata = {strip_module(name): entry for name, entry in metadata.items()}
    return weights


def read_checkpoint(path: str, ema: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and meta information of a checkpoint that mmengine's runner saved.

    With mmengine's EMAHook, ``state_dict`` holds the averaged weights and ``ema_state_dict`` those that the optimizer
    moved.

    Args:
        path: a file, or an address that mmengine knows.
        ema: take the averaged weights where there are some.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is refused or damaged, has no weights, or ``ema=False`` and no others than the saved ones.
    """
    try:
        checkpoint = load_address(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'checkpoint={error}') from error
    weights = weights_of(checkpoint, path)
    if not ema:
        moved = checkpoint.get('ema_state_dict')
        if not isinstance(moved, Mapping):
            raise ValueError(f'{path}: holds no moving average (EMAHook), so there are no other weights to choose')
        # Beside the weights, which all begin with it, the hook counts its steps there.
        weights.update({strip_wrappers(name): value for name, value in moved.items() if name.startswith('module.')})
    if not weights:
        raise ValueError(f'{path}: holds no weights (a dict of tensors, perhaps under state_dict, is expected)')
    meta = checkpoint.get('meta')
    return weights, dict(meta) if isinstance(meta, Mapping) else {}


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must fit exactly.

    Args:
        model: of any kind.
        weights: name → tensor.
        source: where they come from, for the message.

    Raises:
        ValueError: names what is missing, left over or of another shape.
    """
    keys = load_what_fits(model, weights, source)
    parts = (('missing', keys.missing_keys), ('left over', keys.unexpected_keys))
    if any(names for _, names in parts):
        listed = '; '.join(f'{what}: {shorten(names, 8)}' for what, names in parts if names)
        raise ValueError(f'{source} does not fit the model of the config ({listed})')


def load_what_fits(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> Any:
    """Load weights, some of which may be missing or left over; returns PyTorch's lists of both.

    For the arguments see :func:`load_strictly`.

    Raises:
        ValueError: names what is of another shape, or what a CroprViT does not take.
    """
    try:
        return model.load_state_dict(weights, strict=False)
    except ValueError as error:
        raise ValueError(f'{source.rstrip(":")}: {error}') from error
    except RuntimeError as error:  # shapes
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f'{source} does not fit the model of the config ({shorten(lines, 3)})') from error


def load_every_parameter(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must leave no parameter as it was; what is left over does not matter.

    For the arguments see :func:`load_strictly`.

    Raises:
        ValueError: names what is missing or of another shape.
    """
    missing = {strip_wrappers(name) for name in load_what_fits(model, weights, source).missing_keys}
    names = [strip_wrappers(name) for name, _ in model.named_parameters()]
    lacking = [name for name in names if name in missing]
    if lacking:
        raise ValueError(f'{source} does not fit the model of the config; missing: {shorten(lacking, 8)}')


def save_weights(path: str | Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write weights and meta information, whole or not at all.

    Args:
        path: ends in ``.pth``, mmengine's format, or ``.safetensors``, with ``meta`` and the
            patch grids as JSON in the header.
        weights: name → tensor.
        meta: what mmengine keeps beside the weights (``dataset_meta``, ``cfg``, ...).

    Raises:
        ValueError: another suffix.
    """
    path = check_suffix(path, SUFFIXES)
    tensors: Any = OrderedDict((k, v.detach().cpu().contiguous().clone()) for k, v in weights.items())
    if hasattr(weights, '_metadata'):  # of a state dict: a CroprViT's patch grid, among others
        tensors._metadata = weights._metadata
    # By way of memory: on a full disk PyTorch's own writer ends the process, and both writers forget the file's name.
    if path.suffix == '.safetensors':
        from safetensors.torch import save

        header = {'format': 'pt', 'meta': json.dumps(dict(meta), default=str)}
        grids = {k: v['grid'] for k, v in getattr(weights, '_metadata', {}).items() if 'grid' in v}
        if grids:
            header[GRIDS] = json.dumps(grids)
        content = save(tensors, metadata=header)
    else:
        buffer = io.BytesIO()
        torch.save(dict(meta=dict(meta), state_dict=tensors), buffer)
        content = buffer.getvalue()
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return path
