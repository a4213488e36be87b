"""Pretrained weights of plain Vision Transformers into a backbone of this package, whole or not at all.

The order is that of the files of this room: read, bring to timm's names (layouts), fit to the model, load.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from typing import Any, Dict

from mmengine.logging import MMLogger
from torch import Tensor

from ..utils.checks import check_flag
from .fit import fit
from .layouts import convert
from .locate import read_weights
from .names import shorten
from .pruners import PREFIXES, key_pruners_by_block
from .rope import check_angles

State = Dict[str, Tensor]
_INIT_KEYS = ('type', 'checkpoint', 'prefix', 'first_blocks', 'map_location')


def load_vit_weights(model: Any, path: str, prefix: str | None = None, first_blocks: bool = False) -> None:
    """Load pretrained weights in any layout of :data:`~cropr_mm.checkpoint.layouts.LAYOUTS`.

    Positional and patch embedding are resized where the sizes differ. Pruners come from the file too if they are such
    as the model has; otherwise they keep their initial values, and the log says so.

    Args:
        model: a backbone of this package: a module with ``arch``, ``grid`` and ``rotary_angles(grid)``, whose weights
            have timm's names, and those of pruners begin with ``pruners.``.
        path: see :func:`~cropr_mm.checkpoint.locate.read_weights`.
        prefix: see there.
        first_blocks: whether the file may have more blocks than the model, which takes the first of them.

    Raises:
        ValueError: an unknown layout, other rotary angles, or weights that are missing, left over or of another
            shape; all of them are listed, and the model is left as it was.
    """
    found = read_weights(path, prefix)
    dense, pruners = _split(found.state)
    own, own_pruners = _split(model.state_dict())
    try:
        converted, layout = convert(dense)
        check_angles(dense, model.rotary_angles)
        state, notes = fit(converted, own, model.grid, found.grid)
        key_pruners_by_block(pruners, 'pruners.')
    except (ValueError, RuntimeError) as error:  # RuntimeError: tensors whose shapes do not go together
        raise ValueError(f'{path}: {error}; its names are {shorten(list(dense))}') from error
    if first_blocks:
        beyond = [name for name in state if name not in own and name.startswith('blocks.')]
        state = {name: value for name, value in state.items() if name not in beyond}
        notes += [f'the first {model.depth} blocks alone'] if beyond else []
    _compare(state, own, path, layout, model)
    reason = _load(model, state, pruners, own_pruners)
    if found.elsewhere:
        notes.append(f'left out: {", ".join(found.elsewhere)}')
    name, logger = type(model).__name__, MMLogger.get_current_instance()
    logger.info(f'{name}: {"; ".join([f"loaded {len(state)} tensors from {path} ({layout})", *notes])}')
    if reason is not None:
        logger.log(
            logging.WARNING if own_pruners else logging.INFO,
            f"{name}: the pruners in {path} were left out, as they are not this model's ({reason})",
        )


def load_init_cfg(model: Any, settings: Mapping[str, Any]) -> None:
    """Load what an ``init_cfg`` of type ``Pretrained`` names.

    Raises:
        ValueError: no checkpoint, or a key that is unknown.
    """
    unknown = sorted(set(settings) - set(_INIT_KEYS))
    if unknown or not isinstance(settings.get('checkpoint'), str):
        raise ValueError(
            f'init_cfg={dict(settings)!r}; type, checkpoint (a path or an address) and, if needed, prefix and '
            'first_blocks are expected'
        )
    first_blocks = check_flag('init_cfg.first_blocks', settings.get('first_blocks', False))
    load_vit_weights(model, settings['checkpoint'], settings.get('prefix'), first_blocks)


def _split(state: State) -> tuple[State, State]:
    """The weights of the dense model, and those of its pruners."""
    pruners = {name: value for name, value in state.items() if name.startswith(PREFIXES)}
    return {name: value for name, value in state.items() if name not in pruners}, pruners


def _compare(state: State, own: State, path: str, layout: str, model: Any) -> None:
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


def _hints(missing: list[str], extra: list[str], state: State) -> list[str]:
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


def _load(
    model: Any, state: Mapping[str, Tensor], pruners: Mapping[str, Tensor], own_pruners: Mapping[str, Tensor]
) -> str | None:
    """Load weights that fit, with a file's pruners whole or the model's as they are; tell why the file's were not."""
    before = {name: value.clone() for name, value in own_pruners.items()}
    reason = None
    if pruners and not own_pruners:
        reason = 'this model has none with weights'
    elif pruners:
        try:
            model.load_state_dict({**state, **pruners})  # of other blocks, too; so only loading tells whether they fit
            return None
        except (RuntimeError, ValueError) as error:
            reason = textwrap.shorten(str(error), 300, placeholder=' …')
    model.load_state_dict({**state, **before})
    return reason
