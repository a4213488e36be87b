"""Attention within windows of the patch grid, among whichever tokens are still there.

Tokens lie in memory window by window, so the tokens of a window are neighbours. How many there are depends on the data;
shapes never do: they follow from the number of tokens alone, as batching, compilers and export need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import take_rows


def window_numbers(grid: tuple[int, int], size: int, device: torch.device | str = 'cpu') -> Tensor:
    """(N,) int64: the window that each patch of a grid lies in, in raster order; windows count in raster order too.

    Windows at the right and at the bottom are smaller where ``size`` does not divide the grid.
    """
    rows, columns = (torch.arange(side, device=device) // size for side in grid)
    return (rows[:, None] * -(-grid[1] // size) + columns).flatten()


def places_in_window(grid: tuple[int, int], size: int, device: torch.device | str = 'cpu') -> Tensor:
    """(N,) int64: the raster position of each patch inside its window of ``size`` × ``size``."""
    rows, columns = (torch.arange(side, device=device) % size for side in grid)
    return (rows[:, None] * size + columns).flatten()


def count_windows(grid: tuple[int, int], size: int) -> int:
    return -(-grid[0] // size) * -(-grid[1] // size)


@dataclass(frozen=True)
class Windows:
    """Which window each of the tokens at hand lies in.

    Attributes:
        number: (B, N) int64, ascending in each sample: the window of each patch token.
        count: windows of the grid.
        capacity: tokens of a whole window.
        prefix: P, tokens in front of the patch tokens. They attend to all tokens, and all attend to them.
        whole: every window holds ``capacity`` tokens.
    """

    number: Tensor
    count: int
    capacity: int
    prefix: int
    whole: bool


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    """Attention of each patch token to the tokens of its window and to the prefix tokens.

    Args:
        q, k, v: (B, P + N, heads, head_dim).
        windows: where the tokens lie.

    Returns:
        (B, P + N, heads, head_dim).
    """
    prefix = windows.prefix
    if not prefix:
        return _patches(q, k, v, windows)
    everywhere = attend(q[:, :prefix], k, v)
    return torch.cat([everywhere, _patches(q[:, prefix:], k, v, windows)], dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fused attention on (B, M, heads, head_dim); ``mask``, true where attention is wanted, fits (B, heads, M, M)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _patches(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    """What patch tokens (queries without, keys and values with the prefix) attend to."""
    if windows.whole:
        return _whole(q, k, v, windows)
    kernel = None if windows.prefix else _fused_kernel(q)
    if kernel is not None:
        return _fused(q, k, v, windows, kernel)
    tokens, chunk = q.shape[1], _chunk(windows)
    if tokens**2 <= (tokens + windows.count * chunk) * windows.capacity:  # few are left: one masked attention is less
        return attend(q, k, v, _same_window(windows))
    return _chunked(q, k, v, windows, chunk)


# --- ways to compute it ---------------------------------------------------------------------------------------


def _whole(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    """Windows that miss no token: a batch of windows."""
    prefix, shape = windows.prefix, (windows.count, windows.capacity)
    queries = q.unflatten(1, shape).flatten(0, 1)
    keys, values = (
        torch.cat([t[:, None, :prefix].expand(-1, windows.count, -1, -1, -1), t[:, prefix:].unflatten(1, shape)], dim=2)
        if prefix
        else t.unflatten(1, shape)
        for t in (k, v)
    )
    return attend(queries, keys.flatten(0, 1), values.flatten(0, 1)).reshape(q.shape)


def _same_window(windows: Windows) -> Tensor:
    same = windows.number[:, :, None] == windows.number[:, None, :]
    return F.pad(same, (windows.prefix, 0), value=True).unsqueeze(1)


def _chunk(windows: Windows) -> int:
    """Queries that are computed together. Larger ones pad more, smaller ones copy keys more often."""
    return max(windows.capacity // 4, 1)


def _chunked(q: Tensor, k: Tensor, v: Tensor, windows: Windows, chunk: int) -> Tensor:
    """Queries in chunks of one window each, every chunk with all keys of its window.

    There is room for N / chunk + windows chunks, enough however the tokens spread over the windows.
    """
    batch, tokens = windows.number.shape
    start, held = _segments(windows)
    chunks = -(-held // chunk)
    first = chunks.cumsum(1) - chunks  # number of the first chunk of each window
    slot = first.gather(1, windows.number) * chunk
    slot = slot + torch.arange(tokens, device=q.device) - start.gather(1, windows.number)
    room = tokens // chunk + windows.count
    # Slots without a token of their own compute token 0 once more; nobody reads them.
    source = slot.new_zeros(batch, room * chunk).scatter_(
        1, slot, torch.arange(tokens, device=q.device).expand(batch, -1)
    )
    number = torch.searchsorted(
        chunks.cumsum(1), torch.arange(room, device=q.device).expand(batch, -1).contiguous(), right=True
    ).clamp(max=windows.count - 1)
    reach = torch.arange(windows.capacity, device=q.device)
    rows = (start.gather(1, number)[:, :, None] + reach).clamp(max=tokens - 1)
    # At least one key, also for a chunk without a window: a softmax over nothing is NaN, in its gradient too.
    there = reach < held.gather(1, number).clamp(min=1)[:, :, None]
    prefix = windows.prefix
    queries = take_rows(q, source).view(batch * room, chunk, *q.shape[2:])
    keys, values = (
        torch.cat(
            [
                t[:, None, :prefix].expand(-1, room, -1, -1, -1),
                take_rows(t[:, prefix:], rows.flatten(1)).unflatten(1, (room, -1)),
            ],
            dim=2,
        ).flatten(0, 1)
        for t in (k, v)
    )
    mask = F.pad(there, (prefix, 0), value=True).flatten(0, 1)[:, None, None]
    out = attend(queries, keys, values, mask.expand(-1, 1, chunk, -1))
    return take_rows(out.reshape(batch, room * chunk, *q.shape[2:]), slot)


def _segments(windows: Windows) -> tuple[Tensor, Tensor]:
    """First token of each window and how many it holds, both (B, windows)."""
    wanted = torch.arange(windows.count, device=windows.number.device).expand(len(windows.number), -1).contiguous()
    number = windows.number.contiguous()
    start = torch.searchsorted(number, wanted)
    return start, torch.searchsorted(number, wanted, right=True) - start


Kernel = Callable[..., Any]


def _fused_kernel(q: Tensor) -> Kernel | None:
    """PyTorch's attention on sequences of different lengths, where the device and the version have it."""
    if q.device.type != 'cuda' or q.dtype not in (torch.float16, torch.bfloat16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # since PyTorch 2.10
    except ImportError:
        return None
    return varlen_attn


def _fused(q: Tensor, k: Tensor, v: Tensor, windows: Windows, kernel: Kernel) -> Tensor:
    """Each window of each sample is a sequence of its own."""
    start, _ = _segments(windows)
    batch, tokens = q.shape[:2]
    begin = (start + torch.arange(batch, device=q.device)[:, None] * tokens).flatten()
    bounds = F.pad(begin, (0, 1), value=batch * tokens).to(torch.int32)
    out = kernel(*(t.flatten(0, 1) for t in (q, k, v)), bounds, bounds, windows.capacity, windows.capacity)
    return out.view(q.shape)
