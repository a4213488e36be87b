"""Attention within windows of the patch grid, among the current tokens.

Tokens lie in memory window by window, so the tokens of a window are neighbours. How many there are depends on the data.
Where a kernel takes sequences of different lengths, the cost follows their lengths; elsewhere, and for compilers,
shapes follow from the number of tokens alone.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import flat_rows, take_flat_rows
from ..utils.compat import makes_graph


def window_ids(grid: tuple[int, int], size: int, device: torch.device | str = 'cpu') -> Tensor:
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


class Windows:
    """Which window each of the current tokens lies in.

    No dataclass, as FSDP's mixed precision writes into those.

    Attributes:
        window_id: (B, N) int64, ascending in each sample: the window of each patch token.
        count: windows of the grid.
        capacity: tokens of a whole window.
        prefix: P, the number of prefix tokens. They attend to all tokens, and all attend to them.
        whole: every window holds ``capacity`` tokens.
    """

    def __init__(self, window_id: Tensor, count: int, capacity: int, prefix: int, whole: bool) -> None:
        self.window_id, self.count, self.capacity = window_id, count, capacity
        self.prefix, self.whole = prefix, whole


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
    """Fused attention on (B, M, heads, head_dim).

    ``mask`` fits (B, heads, M, M): true where a query sees a key, or numbers that are added before the softmax.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _patches(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    """What patch tokens (queries without, keys and values with the prefix) attend to."""
    if windows.whole:
        return _whole(q, k, v, windows)
    kernel = None if windows.prefix else _sequence_kernel(q)
    if kernel is not None:
        return _sequences(q, k, v, windows, kernel)
    if q.shape[1] ** 2 <= windows.count * windows.capacity**2:  # few are left: one masked attention is less
        return attend(q, k, v, _same_window(windows))
    return _with_holes(q, k, v, windows)


# --- ways to compute it ---------------------------------------------------------------------------------------


def _whole(q: Tensor, k: Tensor, v: Tensor, windows: Windows, mask: Tensor | None = None) -> Tensor:
    """A batch of windows, each with a token at every place; ``mask`` (B, windows, capacity) tells which keys count."""
    prefix, shape = windows.prefix, (windows.count, windows.capacity)
    queries = q.unflatten(1, shape).flatten(0, 1)
    keys, values = (
        torch.cat([t[:, None, :prefix].expand(-1, windows.count, -1, -1, -1), t[:, prefix:].unflatten(1, shape)], dim=2)
        if prefix
        else t.unflatten(1, shape)
        for t in (k, v)
    )
    if mask is not None:
        mask = F.pad(mask, (prefix, 0), value=True).flatten(0, 1)[:, None, None].expand(-1, 1, windows.capacity, -1)
    return attend(queries, keys.flatten(0, 1), values.flatten(0, 1), mask).reshape(q.shape)


def _with_holes(q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
    """Tokens spread over whole windows; nobody attends to the places that stay empty."""
    prefix, room = windows.prefix, windows.count * windows.capacity
    start = _starts(windows)
    held = _starts(windows, after=True) - start
    place = torch.arange(windows.window_id.shape[1], device=q.device) - start.gather(1, windows.window_id)
    slot = windows.window_id * windows.capacity + place
    rows = flat_rows(slot, room)

    def spread(t: Tensor) -> Tensor:
        spacious = t.new_zeros(t.shape[0] * room, *t.shape[2:]).index_copy_(0, rows.flatten(), t.flatten(0, 1))
        return spacious.view(t.shape[0], room, *t.shape[2:])

    # At least one key, also in an empty window: a softmax over nothing is NaN, in its gradient too.
    there = torch.arange(windows.capacity, device=q.device) < held.clamp(min=1)[:, :, None]
    keys, values = (torch.cat([t[:, :prefix], spread(t[:, prefix:])], dim=1) for t in (k, v))
    return take_flat_rows(_whole(spread(q), keys, values, windows, there), rows)


def _same_window(windows: Windows) -> Tensor:
    same = windows.window_id[:, :, None] == windows.window_id[:, None, :]
    return F.pad(same, (windows.prefix, 0), value=True).unsqueeze(1)


def _starts(windows: Windows, after: bool = False) -> Tensor:
    """First patch token of each window (B, windows), or the first one after it."""
    ids = torch.arange(windows.count, device=windows.window_id.device)[:, None]
    found = windows.window_id[:, None, :]  # ascending, so as many lie before (a search has no form in ONNX)
    return (found <= ids if after else found < ids).sum(dim=2)


# --- sequences of different lengths ---------------------------------------------------------------------------

Kernel = Callable[..., Any]
"""``f(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)`` as ``torch.nn.attention.varlen.varlen_attn``."""


def _sequence_kernel(q: Tensor) -> Kernel | None:
    """What computes attention on sequences of different lengths here, at the cost of their lengths alone."""
    if q.device.type == 'cpu':
        # A loop, whose shapes depend on the data: nothing that a compiler could see one graph in.
        return None if makes_graph() else attend_sequences
    if not _flash_attention_fits(q):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # since PyTorch 2.10, and slow to import
    except ImportError:
        return None
    return varlen_attn


def _flash_attention_fits(q: Tensor) -> bool:
    """NVIDIA's GPUs from Ampere on, half precision, and channels per head in eights."""
    if q.device.type != 'cuda' or torch.version.hip is not None:
        return False  # AMD's report capabilities of 8 and more, too
    if q.dtype not in (torch.float16, torch.bfloat16) or q.shape[-1] % 8:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)


def attend_sequences(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attention within each of several sequences, one after the other.

    Args:
        query, key, value: (T, heads, head_dim), the sequences one after the other.
        cu_seq_q, cu_seq_k: (sequences + 1,), where each begins, and the end.
        max_q, max_k: not needed here.
    """
    parts = zip(*(t.split(b.diff().tolist()) for t, b in ((query, cu_seq_q), (key, cu_seq_k), (value, cu_seq_k))))
    return torch.cat([attend(q[None], k[None], v[None])[0] for q, k, v in parts if len(q)])


def _sequences(q: Tensor, k: Tensor, v: Tensor, windows: Windows, kernel: Kernel) -> Tensor:
    """Each window of each sample is a sequence of its own."""
    batch, tokens = q.shape[:2]
    begin = flat_rows(_starts(windows), tokens).flatten()
    bounds = F.pad(begin, (0, 1), value=batch * tokens).to(torch.int32)
    out = kernel(*(t.flatten(0, 1) for t in (q, k, v)), bounds, bounds, windows.capacity, windows.capacity)
    return out.view(q.shape)
