"""Rotary positional embedding (RoPE): the angles of tokens, and turning queries and keys by them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.compat import makes_graph
from .archs import Arch


class Rotary:
    """Angles of the current tokens, as blocks get them.

    Not a tensor, nor anything that FSDP looks for tensors in: its mixed precision would round the angles of each
    forward pass, and not those of a recomputation.

    Attributes:
        table: (M, head_dim / 2, 2), or (B, M, head_dim / 2, 2) where each sample has its own tokens; float32.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table


def rotary_angles(arch: Arch, grid: tuple[int, int], device: torch.device) -> Tensor | None:
    """Angles for each token of a model, prefix tokens included, or None where the architecture has no rotation."""
    head_dim = arch.embed_dim // arch.num_heads
    if arch.rotary == 'eva02':
        return rotary_table(grid, head_dim, arch.rotary_ref, arch.num_prefix_tokens, device)
    if arch.rotary == 'dinov3':
        return rotary_table_dinov3(grid, head_dim, arch.num_prefix_tokens, device)
    return None


def rotary_table(grid: tuple[int, int], head_dim: int, reference: int, prefix: int, device: torch.device) -> Tensor:
    """Angles of EVA-02's axial rotary embedding for each token (arXiv 2303.11331, section 2).

    Half of the channel pairs turn with the row, half with the column, both scaled so that any grid spans
    ``reference`` patches. The pairs are neighbouring channels.

    Returns:
        (prefix + N, head_dim / 2, 2) float32: cosine and sine for each channel pair; prefix tokens do not turn.
    """
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) / side * reference for side in grid)
    return _axial_table(rows, columns, 10000.0, head_dim, prefix)


def rotary_table_dinov3(grid: tuple[int, int], head_dim: int, prefix: int, device: torch.device) -> Tensor:
    """Angles of DINOv3's axial rotary embedding for each token (arXiv 2508.10104).

    Each side of any grid spans -1 to 1 and tokens sit in the middle of their patches; the shortest period is 1, so
    half a side, the base 100. Pair i is the channels i and i + head_dim / 2.

    Returns:
        As :func:`rotary_table`.
    """
    centres = ((torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side for side in grid)
    rows, columns = (2 * math.pi * (2 * centre - 1) for centre in centres)
    return _axial_table(rows, columns, 100.0, head_dim, prefix)


def _axial_table(rows: Tensor, columns: Tensor, base: float, head_dim: int, prefix: int) -> Tensor:
    quarter = head_dim // 4
    bands = base ** -(torch.arange(quarter, device=rows.device, dtype=torch.float32) / quarter)
    angle = torch.cat(
        [
            (rows[:, None, None] * bands).expand(-1, columns.shape[0], -1),
            (columns[None, :, None] * bands).expand(rows.shape[0], -1, -1),
        ],
        dim=-1,
    ).flatten(0, 1)
    angle = F.pad(angle, (0, 0, prefix, 0))
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def apply_rotary(x: Tensor, rotary: Tensor, halves: bool = False) -> Tensor:
    """Turn channel pairs of queries or keys.

    Args:
        x: (B, M, heads, head_dim).
        rotary: (M, head_dim / 2, 2), or (B, M, head_dim / 2, 2) where each sample has its own tokens.
        halves: pair each channel of the first half with one of the second half (DINOv3), not with its neighbour.
    """
    wide = torch.promote_types(x.dtype, torch.float32)  # angles lose too much in half precision
    values, rotary = x.to(wide), rotary.to(wide).unsqueeze(-3)
    if halves:
        (first, second), (cos, sin) = values.chunk(2, dim=-1), rotary.unbind(-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
    pairs = values.unflatten(-1, (-1, 2))
    if makes_graph():
        (even, odd), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        # One pass over contiguous memory, many times faster on a CPU; compilers know no complex numbers.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    return turned.flatten(-2).to(x.dtype)
