"""What ``load_state_dict`` does to a backbone of this package, through whichever door a checkpoint comes.

mmengine loads with ``strict=False`` and logs what does not fit. For a backbone that is an error here; what a checkpoint
lacks of heads and pruners is left to mmengine, as a training may begin with new ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.logging import MMLogger

from ..utils.compat import remove_prefix
from .fit import fit_positions
from .names import shorten, strip_wrappers
from .pruners import PREFIXES

_EMBEDDED = ('pos_embed', 'cls_token', 'reg_token')
# PyTorch's message about a weight of another shape.
_MISMATCH = re.compile(
    r'size mismatch for (\S+): copying a param with shape torch\.Size\((\[.*?\])\) from checkpoint, '
    r'the shape in current model is torch\.Size\((\[.*?\])\)\.'
)


@dataclass
class Loading:
    """A ``load_state_dict`` under way: PyTorch's lists, and how long they were before the backbone's turn.

    Attributes:
        prefix: before the backbone's names, such as ``'backbone.'``.
        lists: missing names, unexpected names, and messages about weights that cannot be copied.
        lengths: of the lists before.
        foreign: the checkpoint is of another backbone, and nothing of it is used but its pruners.
    """

    prefix: str
    lists: tuple[list[str], ...]
    lengths: tuple[int, ...]
    foreign: bool

    def found(self) -> list[list[str]]:
        """What has come to the lists since; names without the prefix, and without wrappers, which only some have."""
        prefix = strip_wrappers(self.prefix)
        missing, unexpected, errors = (part[length:] for part, length in zip(self.lists, self.lengths))
        shown = [_MISMATCH.sub(r'\1 \2, expected \3', error.strip()) for error in errors]
        lists = (missing, unexpected, shown)
        return [[remove_prefix(strip_wrappers(text), prefix) for text in part] for part in lists]


def begin_loading(
    model: Any, state_dict: dict[str, Any], prefix: str, metadata: Mapping[str, Any], *lists: list[str]
) -> Loading:
    """Make a state dict fit before a backbone loads it: resize its positional embedding, leave another backbone out.

    Args:
        model: the backbone; its ``grid``, ``pos_embed``, ``cls_token`` and ``reg_token`` are read, and ``has_weights``
            is set to False where it is None and the checkpoint is of another backbone.
        state_dict: changed in place.
        prefix: before the model's names in it.
        metadata: that a backbone of this package left there (its patch grid).
        lists: as ``_load_from_state_dict`` gets them.

    Raises:
        ValueError: a positional embedding whose grid nothing tells.
    """
    names = [name for name in state_dict if name.startswith(prefix)]
    foreign = not any(name.startswith(f'{prefix}blocks.') for name in names)
    if foreign:
        names = [name for name in names if not name[len(prefix) :].startswith(PREFIXES)]
        for name in names:  # some names are everybody's: cls_token, pos_embed
            del state_dict[name]
        if names and model.has_weights is None:
            model.has_weights = False
        MMLogger.get_current_instance().warning(
            f'{type(model).__name__}: the checkpoint holds no weights of this backbone, which keeps those that it has '
            f'(left out: {shorten(names, 4) or "nothing"})'
        )
    elif model.pos_embed is not None:
        _fit_positions(model, state_dict, prefix, metadata.get('grid'))
    return Loading(prefix, lists, tuple(len(part) for part in lists), foreign)


def _fit_positions(model: Any, state_dict: dict[str, Any], prefix: str, grid: Any) -> None:
    value = state_dict.get(f'{prefix}pos_embed')
    old_grid = (int(grid[0]), int(grid[1])) if isinstance(grid, (list, tuple)) and len(grid) == 2 else None
    if value is None or (value.shape == model.pos_embed.shape and old_grid in (None, model.grid)):
        return
    state = {name: state_dict[prefix + name] for name in _EMBEDDED if prefix + name in state_dict}
    own = {name: getattr(model, name) for name in _EMBEDDED if getattr(model, name) is not None}
    notes = fit_positions(state, own, model.grid, old_grid)
    state_dict.update({prefix + name: tensor for name, tensor in state.items()})
    if notes:
        MMLogger.get_current_instance().info(f'{type(model).__name__}: {"; ".join(notes)}')


def end_loading(model: Any, keys: Any) -> None:
    """Refuse what did not fit; a post hook of ``load_state_dict``.

    Args:
        model: the backbone; ``has_weights`` is set to True where a checkpoint of its kind was loaded, and
            ``pruners_are_new`` where it has pruners with weights: whether the checkpoint had none of them.
        keys: PyTorch's own lists, which :class:`Loading` has.

    Raises:
        ValueError: weights of another shape, missing or left over; all of them are listed.
    """
    loading: Loading = model.__dict__.pop('_loading')
    missing, unexpected, errors = loading.found()
    # An auxiliary head is of the task, as the other heads are; without its weights a pruner prunes as it did.
    shapes = [text for text in errors if '.aux_head.' not in text]
    extra = [name for name in unexpected if not name.startswith(PREFIXES)]
    names = [strip_wrappers(name) for name, _ in model.named_parameters()]
    pruners = {name for name in names if name.startswith('pruners.') and '.aux_head.' not in name}
    absent = pruners.intersection(missing)
    missing = [] if loading.foreign else [name for name in missing if not name.startswith(PREFIXES)]
    if not loading.foreign:
        model.has_weights = True
    if absent != pruners:
        model.pruners_are_new = False
        missing += sorted(absent)
    elif pruners and not loading.foreign:
        model.pruners_are_new = True
    _refuse(model, loading.prefix, {'missing': missing, 'left over': extra, 'of another shape': shapes})


def _refuse(model: Any, prefix: str, wrong: Mapping[str, list[str]]) -> None:
    limits = {'of another shape': 4}
    listed = '; '.join(f'{what}: {shorten(names, limits.get(what, 8))}' for what, names in wrong.items() if names)
    if not listed:
        return
    hint = ''
    if any('.queries ' in shape for shape in wrong['of another shape']):
        hint = (
            '. Pruners with a query for each patch belong to one img_size; for inference at another set '
            'model.backbone.pruning.deploy=True, to train new ones load the file by init_cfg'
        )
    place = strip_wrappers(prefix)[:-1]
    where = f'{place}: ' if place else ''
    raise ValueError(f'{where}the checkpoint does not fit the {type(model).__name__} of the config ({listed}){hint}')
