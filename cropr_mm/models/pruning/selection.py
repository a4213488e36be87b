"""Ranking, splitting and joining of tokens. Nobody else permutes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tokens import row_numbers, take_numbered, take_rows


@dataclass(frozen=True)
class Tokens:
    """Tokens in any order.

    Attributes:
        x: (B, M, D), prefix tokens first where there are any.
        position: (B, M) int64. Prefix tokens are 0 … P-1, the patch at raster position i is P + i.
    """

    x: Tensor
    position: Tensor


def rank(scores: Tensor) -> Tensor:
    """Order of the tokens, best first.

    Args:
        scores: (B, N); higher stays. NaN ranks last. Ties keep their order.

    Returns:
        (B, N) int64, a permutation of 0 … N-1 for each sample, whatever the scores are.
    """
    comparable = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return comparable.argsort(dim=1, descending=True, stable=True)


def split(tokens: Tokens, scores: Tensor, count: int, prefix: int) -> tuple[Tokens, Tokens]:
    """Take the ``count`` lowest tokens aside.

    Args:
        tokens: (B, P + N, D), prefix first.
        scores: (B, N) of the patch tokens.
        count: 0 ≤ count < N.
        prefix: P; these tokens always go on.

    Returns:
        What goes on (P + N - count tokens, prefix first), in the order in which it was, so that neighbours in memory
        stay neighbours; and what is taken aside (count tokens).
    """
    # The prefix ranks first: nothing is above infinity, and ties keep their order.
    order = rank(F.pad(scores, (prefix, 0), value=torch.inf) if prefix else scores)
    total = order.shape[1]
    kept, aside = row_numbers(order, total).split([total - count, count], dim=1)
    return _take(tokens, kept.sort(dim=1).values), _take(tokens, aside.contiguous())


def _take(tokens: Tokens, numbers: Tensor) -> Tokens:
    return Tokens(take_numbered(tokens.x, numbers), take_numbered(tokens.position, numbers))


def concat(parts: Sequence[Tokens]) -> Tokens:
    """Join what goes on (first) with what was taken aside, in no particular order."""
    return Tokens(torch.cat([p.x for p in parts], dim=1), torch.cat([p.position for p in parts], dim=1))


def restore(parts: Sequence[Tokens], order: Tensor) -> Tensor:
    """Join parts that together hold every position once.

    Args:
        parts: tokens and positions.
        order: (P + N,) int64, the positions in the order wanted.

    Returns:
        (B, P + N, D).
    """
    joined = concat(parts)
    slot = torch.arange(joined.position.shape[1], device=joined.position.device).expand_as(joined.position)
    slot_of = torch.empty_like(joined.position).scatter_(1, joined.position, slot)
    return take_rows(joined.x, slot_of.index_select(1, order))
