"""Names of what pruning adds in checkpoints; those of pruners say the block that each stands after."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

PREFIXES = ('pruners.', 'late_return.')
"""How the names of weights begin that a CroprViT has and the dense model has not."""


def key_pruners_by_block(state: MutableMapping[str, Any], prefix: str) -> None:
    """Rename pruners that are counted, as the first checkpoints of this package have them, in place.

    ``pruners.0.queries`` with ``pruners.blocks`` = [2, …] becomes ``pruners.2.queries``.

    Args:
        state: names and tensors.
        prefix: before the names of the pruners, such as ``'backbone.pruners.'``.

    Raises:
        ValueError: a pruner whose block is not listed.
    """
    if f'{prefix}blocks' not in state:
        return
    blocks = state.pop(f'{prefix}blocks').flatten().tolist()
    numbers = {key: block_of(key, prefix) for key in state}
    if any(number is not None and number >= len(blocks) for number in numbers.values()):
        raise ValueError(f'{prefix}blocks lists {blocks}, fewer blocks than the checkpoint has pruners')
    counted = {key: state.pop(key) for key, number in numbers.items() if number is not None}
    for key, value in counted.items():
        number, name = key[len(prefix) :].split('.', 1)
        state[f'{prefix}{blocks[int(number)]}.{name}'] = value


def block_of(name: str, prefix: str) -> int | None:
    """The number at the head of a name after ``prefix``; None where there is none."""
    head = name[len(prefix) :].split('.')[0] if name.startswith(prefix) else ''
    return int(head) if head.isdecimal() else None
