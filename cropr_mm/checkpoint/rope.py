"""Whether a checkpoint was trained with the rotary angles (RoPE) by which a model turns its queries and keys.

Nothing in the names or shapes of weights tells, but some files carry the angles along.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Callable, Tuple

import torch
from torch import Tensor

# Files may hold them in half precision; another formula is off by far more.
TOLERANCE = 0.1
# EVA-02's detectors have a table for their windows and one for the whole grid; blocks may hold theirs once more.
_COSINES = re.compile(r'(blocks\.\d+\.attn\.)?rope(_win|_glb)?\.freqs_cos$')

Angles = Callable[[Tuple[int, int]], 'Tensor | None']


def check_angles(state: Mapping[str, Tensor], angles: Angles) -> None:
    """Compare the angles in a file with those of a model.

    Args:
        state: the weights by the file's own names.
        angles: grid → (N, head_dim / 2, 2), cosine and sine of each patch token, or None without rotary positions.

    Raises:
        ValueError: they differ.
    """
    for name, found, expected in (*_eva02(state, angles), *_dinov3(state, angles)):
        if expected is None or not _same(found, expected):
            raise ValueError(
                f'its rotary angles are not those of this model ({name}; arch.rotary, arch.rotary_ref), so its outputs '
                'would not be either'
            )


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found.float() - expected.float()).abs().max() <= TOLERANCE)


def _eva02(state: Mapping[str, Tensor], angles: Angles) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """EVA-02 and mmpretrain keep the cosines (H, W, head_dim) or (HW, head_dim), each twice for neighbours."""
    for name in filter(_COSINES.match, state):
        cosines = state[name]
        side = math.isqrt(cosines.shape[0])
        grid = (cosines.shape[0], cosines.shape[1]) if cosines.ndim == 3 else (side, side)
        table = angles(grid)
        yield name, cosines.flatten(0, -2), None if table is None else table[..., 0].repeat_interleave(2, dim=-1)


def _dinov3(state: Mapping[str, Tensor], angles: Angles) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """DINOv3 keeps the periods (head_dim / 4), in units of half a side of the grid."""
    name = 'rope_embed.periods'
    if name in state:
        periods = state[name]
        table = angles((2, 1))  # whose second row is half a unit below the middle
        yield name, torch.cos(math.pi / periods.float()), None if table is None else table[1, : len(periods), 0]
