"""Finding the weights of a ViT in what a checkpoint file holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .addresses import load_address
from .names import shorten, strip_wrappers

# Where a file holds more than one ViT, the first of these around its names decides.
PREFERRED = ('state_dict', 'model', 'module', 'teacher', 'model_ema', 'student')
# Every layout has the patch embedding under one of these names, so it tells where the ViT's own names begin.
_PATCH_EMBEDDING = re.compile(r'(?P<place>(?:.*\.)?)patch_embed\.proj(?:ection)?\.weight')


@dataclass(frozen=True)
class Weights:
    """The weights of one ViT, as they stand in a file.

    Attributes:
        state: tensors by their names within ``place``, without wrappers.
        place: what precedes every name in the file, such as ``'state_dict.backbone.'``.
        elsewhere: names of the file's other parts, shortened to their first words.
        grid: the patch grid (H, W) of the positional embedding where the file tells it, or None.
    """

    state: dict[str, Tensor]
    place: str = ''
    elsewhere: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None


def read_state_dict(path: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Names and tensors of the ViT in a checkpoint file; see :func:`read_weights`."""
    return read_weights(path, prefix).state


def read_weights(path: str, prefix: str | None = None) -> Weights:
    """Read the weights of a ViT from a .safetensors or torch file, or from an address that mmengine knows.

    Nothing that the file holds is run: see :mod:`~cropr_mm.checkpoint.unpickle`.

    Args:
        path: the file. Its weights may lie in dicts in dicts and under any prefix (``state_dict``, ``model``,
            ``teacher``, ``backbone.``, ``module.``): the name of the patch embedding tells.
        prefix: the end of that place, as ``'backbone.'`` or ``'teacher.backbone.'``, to choose among several.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, refused or holds no ViT, or none or several under ``prefix``.
    """
    try:
        content = load_address(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'init_cfg.checkpoint={error}') from error
    if path.endswith('.safetensors'):
        content = content['state_dict']
    tensors = dict(_flatten(content))
    if not tensors:
        raise ValueError(f'{path}: holds no weights (a dict of tensors, perhaps within others, is expected)')
    place = _find_place(path, list(tensors), prefix)
    inside = {strip_wrappers(name[len(place) :]): value for name, value in tensors.items() if name.startswith(place)}
    outside = Counter(_first_words(name, place) for name in tensors if not name.startswith(place))
    return Weights(inside, place, tuple(f'{name} ({n})' for name, n in outside.items()), _recorded_grid(content, place))


def _flatten(content: Any, place: str = '') -> Iterator[tuple[str, Tensor]]:
    """Tensors in dicts in dicts, with their keys joined by dots."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                yield place + key, value
            elif isinstance(key, str):
                yield from _flatten(value, f'{place}{key}.')


def _find_place(path: str, names: list[str], prefix: str | None) -> str:
    matches = [match for match in map(_PATCH_EMBEDDING.fullmatch, names) if match]
    places = [match['place'] for match in matches]
    if not places:
        raise ValueError(
            f'{path}: holds no plain ViT in a layout that is known (no patch_embed.proj.weight or '
            f'patch_embed.projection.weight); its names are {shorten(names)}'
        )
    listed = ', '.join(repr(place) for place in places)
    if prefix is not None:
        end = prefix if not prefix or prefix.endswith('.') else f'{prefix}.'
        fitting = [place for place in places if place == end or (end and place.endswith(f'.{end}'))]
        if len(fitting) != 1:
            raise ValueError(f'{path}: init_cfg.prefix={prefix!r} fits {len(fitting)} of its ViTs, at {listed}')
        return fitting[0]
    if len(places) > 1:
        ranks = [_rank(place) for place in places]
        if ranks.count(min(ranks)) > 1:
            raise ValueError(f'{path}: holds several ViTs, at {listed}; choose one with init_cfg.prefix')
        return places[ranks.index(min(ranks))]
    return places[0]


def _rank(place: str) -> int:
    first = place.split('.')[0]
    return PREFERRED.index(first) if first in PREFERRED else len(PREFERRED)


def _first_words(name: str, place: str) -> str:
    """'state_dict.decode_head.conv.weight' → 'decode_head' where the ViT is at 'state_dict.backbone.'."""
    words, around = name.split('.'), place.split('.')
    while len(words) > 1 and around and words[0] == around[0]:
        words, around = words[1:], around[1:]
    return words[0]


def _recorded_grid(content: Any, place: str) -> tuple[int, int] | None:
    """Grid that a CroprViT left in the metadata of its state dict."""
    words = place.split('.')[:-1]
    for depth in range(len(words) + 1):
        metadata = getattr(content, '_metadata', None)
        if isinstance(metadata, Mapping):
            grid = metadata.get('.'.join(words[depth:]), {}).get('grid')
            if isinstance(grid, (list, tuple)) and len(grid) == 2:
                return int(grid[0]), int(grid[1])
        if depth == len(words) or not isinstance(content, Mapping) or words[depth] not in content:
            return None
        content = content[words[depth]]
    return None
