"""Where pruned tokens go, other than aside: into the kept tokens that are most like them, or into one token."""

from __future__ import annotations

from typing import Callable, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tokens import Removed, Tokens, rank, take_rows
from .base import Context
from .tome import merge

Weigh = Callable[[Tensor], Tensor]
Absorb = Callable[[Tokens, Tensor, int, Context, Weigh], Tuple[Tokens, Removed]]


def into_nearest(
    tokens: Tokens, scores: Tensor, count: int, context: Context, weigh: Weigh | None = None
) -> tuple[Tokens, Removed]:
    """Merge each pruned token into the kept one that is most like it (cosine), by the mean of all positions.

    Positions come back with the value that they share. Padding adds nothing to a token that is kept.

    Args:
        tokens: M patch tokens.
        scores: (B, M); higher is kept.
        count: 0 < count < M.
        context: of which padding is read.
        weigh: not asked.
    """
    with torch.no_grad():
        kept, pruned = _split(scores, count)
        directions = F.normalize(tokens.patches.float(), dim=-1)
        similarity = take_rows(directions, pruned) @ take_rows(directions, kept).transpose(1, 2)
        target = kept.gather(1, similarity.argmax(dim=-1))
        padding = None if context.padding is None else context.padding.gather(1, tokens.position.gather(1, pruned))
    return merge(tokens, pruned, target, kept.sort(dim=1).values, padding)


def into_one(tokens: Tokens, scores: Tensor, count: int, context: Context, weigh: Weigh) -> tuple[Tokens, Removed]:
    """Fuse pruned tokens into one that continues, their weighted mean (EViT, arXiv 2202.07800, equation 4).

    It stands at the position of the best of them, which comes back with its value; the others come back with their own.

    Args:
        tokens: M patch tokens.
        scores: (B, M); higher is kept.
        count: 0 < count < M.
        context: padding has no part in the mean, unless all of them are.
        weigh: gives the weights of tokens in that mean, from their scores.
    """
    prefix = tokens.num_prefix
    kept, fused = _split(scores, count + 1)
    weights = weigh(scores)
    if context.padding is not None:
        weights = weights.masked_fill(context.padding.gather(1, tokens.position), 0.0)
    share = weights.gather(1, fused) + torch.finfo(torch.float32).tiny
    share = share / share.sum(dim=1, keepdim=True)
    mean = (share.unsqueeze(1) @ take_rows(tokens.patches, fused).float()).to(tokens.x.dtype)
    rows, into = torch.cat([kept, fused[:, :1]], dim=1).sort(dim=1)
    removed = tokens.take(fused[:, 1:] + prefix)
    first = torch.arange(prefix, device=rows.device).expand(len(rows), -1)
    left = tokens.take(torch.cat([first, rows + prefix], dim=1))
    at = (into == kept.shape[1]).unsqueeze(-1)  # where the fused token lies among those that continue
    x = torch.cat([left.prefix, torch.where(at, mean, left.patches)], dim=1)
    return left._replace(x=x), Removed(removed.all_positions, removed.x)


def _split(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows (B, M - count) of the best and (B, count) of the rest, best first."""
    ranked = rank(scores)
    kept, rest = ranked.split([ranked.shape[1] - count, count], dim=1)
    return kept, rest


ABSORB: dict[str, Absorb] = {'nearest': into_nearest, 'fused_token': into_one}
"""``pruning.absorb`` → what it does."""
