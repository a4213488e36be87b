"""Token merging (ToMe, arXiv 2210.09461): no training, no parameters; similar tokens become one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ...tokens import Removed, Tokens, rank, take_rows
from .base import BaseReducer, Context


@MODELS.register_module()
class ToMeReducer(BaseReducer):
    """Merges the patch tokens that are most alike, in pairs, by bipartite soft matching (ToMe, section 3).

    The tokens are dealt into two sets in turn. Each of the first set has one partner in the second, the one whose key
    (mean over the heads, in the block before) has the most similar direction; the ``count`` most similar pairs merge
    into their mean, weighted by how many positions each stands for. Blocks from there on count a token as often as that
    (proportional attention). Where more than half of the tokens are to go, that is done again.

    All positions come back with the value of the token that they share. Padding merges first, with padding alone.
    It works on any finished dense model, and trains as the model does. Not in models with windows.
    """

    observes = True
    fits_windows = False

    def observe(self, q: Tensor, k: Tensor, num_prefix: int) -> Tensor:
        with torch.no_grad():
            return k[:, num_prefix:].float().mean(dim=2)

    def forward(self, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        return match_and_merge(tokens, context.observed, count, context.padding)


def match_and_merge(
    tokens: Tokens, metric: Tensor, count: int, padding: Tensor | None = None
) -> tuple[Tokens, list[Removed]]:
    """Merge ``count`` < M patch tokens, up to half of the tokens at a time.

    Args:
        tokens: the current tokens.
        metric: (B, M, C), what tokens are alike by; a merged token keeps that of the one it merged into.
        count: 0 ≤ count < M.
        padding: (B, N) bool by position, or None.

    Returns:
        The tokens that are left, the prefix first, and those that merged.
    """
    removed = []
    while count:
        pairs = min(count, tokens.position.shape[1] // 2)
        rows = matching(metric, pairs, None if padding is None else padding.gather(1, tokens.position))
        tokens, part = merge(tokens, *rows)
        metric, count = take_rows(metric, rows[2]), count - pairs
        removed.append(part)
    return tokens, removed


def matching(metric: Tensor, pairs: int, padding: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching.

    Args:
        metric: (B, M, C), what tokens are alike by.
        pairs: 0 < pairs ≤ M / 2.
        padding: (B, M) bool, or None.

    Returns:
        Rows of the tokens that merge (B, pairs), of the tokens that they merge into (B, pairs), and of those that stay
        (B, M - pairs), ascending.
    """
    with torch.no_grad():
        directions = F.normalize(metric.float(), dim=-1)
        similarity = directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)
        if padding is not None:
            first, second = padding[:, ::2, None], padding[:, None, 1::2]
            similarity = similarity.masked_fill(first != second, -torch.inf).masked_fill(first & second, 2.0)
        best, partner = similarity.max(dim=-1)
        order = rank(best)
        merged = order[:, :pairs]
        second_set = torch.arange(1, metric.shape[1], 2, device=metric.device).expand(metric.shape[0], -1)
        stay = torch.cat([2 * order[:, pairs:], second_set], dim=1).sort(dim=1).values
        return 2 * merged, 2 * partner.gather(1, merged) + 1, stay


def merge(
    tokens: Tokens, source: Tensor, target: Tensor, stay: Tensor, ignored: Tensor | None = None
) -> tuple[Tokens, Removed]:
    """Merge patch tokens into others, by the mean of all positions that they stand for.

    Args:
        tokens: the current tokens.
        source: (B, R), rows of patch tokens that merge, none twice.
        target: (B, R), rows of those that they merge into, any number into one; none of ``source``.
        stay: (B, M - R), all other rows.
        ignored: (B, R) bool, those of ``source`` that add nothing to the mean, or None.

    Returns:
        The tokens that are left, the prefix first, and those that merged.
    """
    prefix, position = tokens.num_prefix, tokens.position
    size = tokens.x.new_ones(tokens.all_positions.shape, dtype=torch.float32) if tokens.size is None else tokens.size
    own = size[:, prefix:]
    added = own.gather(1, source)
    if ignored is not None:
        added = added.masked_fill(ignored, 0.0)
    patches = tokens.patches.float()
    sums = patches * own.unsqueeze(-1)
    where: Any = target.unsqueeze(-1).expand(-1, -1, sums.shape[2])
    sums = sums.scatter_add(1, where, take_rows(patches, source) * added.unsqueeze(-1))
    own = own.scatter_add(1, target, added).gather(1, stay)
    x = (take_rows(sums, stay) / own.unsqueeze(-1)).to(tokens.x.dtype)
    left = Tokens(
        torch.cat([tokens.prefix, x], dim=1),
        torch.cat([tokens.all_positions[:, :prefix], position.gather(1, stay)], dim=1),
        prefix,
        torch.cat([size[:, :prefix], own], dim=1),
    )
    return left, Removed(position.gather(1, source), owner=position.gather(1, target))
