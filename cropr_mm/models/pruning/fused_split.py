"""Selecting and moving tokens in one kernel (Triton), for inference on CUDA; :func:`cropr_mm.tokens.split` otherwise.

A token's rank is counted, not sorted for: as many tokens as score higher, or equally and lie before it. So each program
ranks a few tokens and writes them where they belong, without waiting for the others.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...tokens import Removed, Tokens

TOKENS, CHUNK, CHANNELS = 16, 256, 128
"""Tokens of a program; tokens that it compares them with at a time, and channels that it moves at a time."""


def fused_split(tokens: Tokens, scores: Tensor, count: int, padding: Tensor | None) -> tuple[Tokens, Removed]:
    """As :func:`~cropr_mm.tokens.split` without ``in_order``, with padding masked; equal to the bit, without gradients.

    Args:
        tokens: M patch tokens, and any prefix tokens; one position each.
        scores: (B, M) float32.
        count: 0 < count < M.
        padding: (B, N) bool, by position, or None.
    """
    x, position, prefix = tokens.x.contiguous(), tokens.all_positions.contiguous(), tokens.num_prefix
    batch, total, dim = x.shape
    kept, pruned = x.new_empty(batch, total - count, dim), x.new_empty(batch, count, dim)
    kept_at, pruned_at = position.new_empty(batch, total - count), position.new_empty(batch, count)
    known = padding is not None
    masks: Any = padding.contiguous().view(torch.uint8) if padding is not None else position  # any tensor, never read
    with torch.cuda.device_of(x):
        _rank_and_move[(batch, triton.cdiv(total, TOKENS))](
            x, position, scores.contiguous(), masks, kept, kept_at, pruned, pruned_at,
            total, prefix, count, dim, masks.shape[1],
            PADDED=known, TOKENS=TOKENS, CHUNK=CHUNK, CHANNELS=CHANNELS,
        )  # fmt: skip
    return Tokens(kept, kept_at, prefix), Removed(pruned_at, pruned)


@triton.jit
def _comparable(scores, position, padding, sample, row, prefix, total, patches, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of rows of a sample: NaN and padding are minus infinity."""
    is_patch = (row >= prefix) & (row < total)
    score = tl.load(scores + sample * (total - prefix) + row - prefix, mask=is_patch, other=float('-inf'))
    if PADDED:
        where = tl.load(position + sample * total + row, mask=is_patch, other=0)
        padded = tl.load(padding + sample * patches + where, mask=is_patch, other=0)
        score = tl.where(padded != 0, float('-inf'), score)
    return tl.where(score == score, score, float('-inf'))


@triton.jit
def _rank_and_move(  # type: ignore[no-untyped-def]
    x, position, scores, padding, kept, kept_at, pruned, pruned_at,
    total, prefix, count, dim, patches,
    PADDED: tl.constexpr, TOKENS: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    own = _comparable(scores, position, padding, sample, row, prefix, total, patches, PADDED)
    rank = tl.zeros([TOKENS], dtype=tl.int32)
    for start in range(prefix, total, CHUNK):
        other = start + tl.arange(0, CHUNK)
        score = _comparable(scores, position, padding, sample, other, prefix, total, patches, PADDED)
        before = (score[None, :] > own[:, None]) | ((score[None, :] == own[:, None]) & (other[None, :] < row[:, None]))
        rank += tl.sum((before & (other < total)[None, :]).to(tl.int32), axis=1)
    place = tl.where(row < prefix, row, prefix + rank)  # the prefix stays first
    stay = total - count
    keeps, leaves = (row < total) & (place < stay), (row < total) & (place >= stay)
    to_kept, to_pruned = sample * stay + place, sample * count + place - stay
    at = tl.load(position + sample * total + row, mask=row < total, other=0)
    tl.store(kept_at + to_kept, at, mask=keeps)
    tl.store(pruned_at + to_pruned, at, mask=leaves)
    for start in range(0, dim, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        inside = (channel < dim)[None, :]
        source = x + (sample * total + row)[:, None] * dim + channel[None, :]
        value = tl.load(source, mask=(row < total)[:, None] & inside)
        tl.store(kept + to_kept[:, None] * dim + channel[None, :], value, mask=keeps[:, None] & inside)
        tl.store(pruned + to_pruned[:, None] * dim + channel[None, :], value, mask=leaves[:, None] & inside)
