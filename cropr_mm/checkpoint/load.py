"""Pretrained weights of plain Vision Transformers into a CroprViT, whole or not at all."""

from __future__ import annotations

import copy
import logging
import textwrap
from collections.abc import Mapping
from typing import Any, Protocol

from mmengine.logging import MMLogger
from torch import Tensor, nn

from .fit import fit
from .layouts import convert
from .locate import read_weights, shorten
from .rope import check_angles

_INIT_KEYS = ('type', 'checkpoint', 'prefix', 'map_location')


class Backbone(Protocol):
    """What loading needs of a model; a CroprViT has it."""

    arch: Any
    grid: tuple[int, int]
    pruners: nn.Module

    def rotary_angles(self, grid: tuple[int, int]) -> Tensor | None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...


def load_vit_weights(model: Backbone, path: str, prefix: str | None = None) -> None:
    """Load pretrained weights in any layout of :data:`~cropr_mm.checkpoint.layouts.LAYOUTS`.

    Position and patch embedding are resized where the sizes differ. Pruners come from the file too if they are such
    as the model has; otherwise they keep their initial values, and the log says so.

    Args:
        model: the backbone.
        path: see :func:`~cropr_mm.checkpoint.locate.read_weights`.
        prefix: see there.

    Raises:
        ValueError: an unknown layout, other rotary angles, or weights that are missing, left over or of another
            shape; all of them are listed, and the model is left as it was.
    """
    found = read_weights(path, prefix)
    own = model.state_dict()
    pruners = {name: value for name, value in found.state.items() if name.startswith('pruners.')}
    dense = {name: value for name, value in found.state.items() if name not in pruners}
    try:
        converted, layout = convert(dense)
        check_angles(dense, model.rotary_angles)
        state, notes = fit(converted, own, model.grid, found.grid)
    except (ValueError, RuntimeError) as error:  # RuntimeError: tensors whose shapes do not go together
        raise ValueError(f'{path}: {error}; its names are {shorten(list(dense))}') from error
    backbone = {name: value for name, value in own.items() if not name.startswith('pruners.')}
    _compare(state, backbone, path, layout, model)
    reason = _load_pruners(model.pruners, pruners)
    model.load_state_dict({**model.state_dict(), **state})
    if found.elsewhere:
        notes.append(f'left out: {", ".join(found.elsewhere)}')
    logger = MMLogger.get_current_instance()
    logger.info(f'CroprViT: {"; ".join([f"loaded {len(state)} tensors from {path} ({layout})", *notes])}')
    if reason is not None:
        logger.log(
            logging.WARNING if any(True for _ in model.pruners.parameters()) else logging.INFO,
            f"CroprViT: the pruners in {path} were left out, as they are not this model's ({reason})",
        )


def load_init_cfg(model: Backbone, settings: Mapping[str, Any]) -> None:
    """Load what an ``init_cfg`` of type ``Pretrained`` names.

    Raises:
        ValueError: no checkpoint, or a key that is unknown.
    """
    unknown = sorted(set(settings) - set(_INIT_KEYS))
    if unknown or not isinstance(settings.get('checkpoint'), str):
        raise ValueError(
            f'init_cfg={dict(settings)!r}; type, checkpoint (a path or an address) and, if needed, prefix are expected'
        )
    load_vit_weights(model, settings['checkpoint'], settings.get('prefix'))


def _compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str, layout: str, model: Backbone) -> None:
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f'{name} {tuple(state[name].shape)}, expected {tuple(own[name].shape)}'
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or extra or shapes:
        parts = (('missing', missing), ('left over', extra), ('of another shape', shapes))
        listed = '; '.join(f'{what}: {shorten(names)}' for what, names in parts if names)
        hints = _hints(missing, extra, state)
        raise ValueError(
            f'{path}: read as {layout}, does not fit arch {model.arch} ({listed})'
            + (f'. Perhaps: {"; ".join(hints)}' if hints else '')
        )


def _hints(missing: list[str], extra: list[str], state: Mapping[str, Tensor]) -> list[str]:
    """Settings of the model with which weights would fit that do not."""
    hints = []
    if 'reg_token' in extra:
        hints.append(f'arch.num_registers={state["reg_token"].shape[1]}')
    if 'reg_token' in missing:
        hints.append('arch.num_registers=0')
    if 'cls_token' in missing:
        hints.append('arch.class_token=False')
    if 'blocks.0.ls1.gamma' in extra:
        hints.append('arch.layer_scale=1e-5 (any number)')
    if 'blocks.0.ls1.gamma' in missing:
        hints.append('arch.layer_scale=None')
    if 'norm.weight' in missing:
        hints.append('final_norm=False (the file has no final norm)')
    if 'blocks.0.attn.k_bias' in extra:
        hints.append('arch.key_bias=True')
    return hints


def _load_pruners(pruners: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Load a file's pruners whole, or leave the model's as they are and tell why."""
    if all(name == 'pruners.blocks' for name in weights):  # none, or such as have no weights
        return None
    if not any(True for _ in pruners.parameters()):
        return 'this model has none with weights'
    trial = copy.deepcopy(pruners)  # loading renumbers and folds, so only loading tells; and it may fail half way
    try:
        trial.load_state_dict({name[len('pruners.') :]: value for name, value in weights.items()})
    except (RuntimeError, ValueError) as error:
        return textwrap.shorten(str(error), 300, placeholder=' …')
    pruners.load_state_dict(trial.state_dict())
    return None
