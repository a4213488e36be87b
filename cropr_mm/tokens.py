"""Tokens that know where they sit on the patch grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

FILLS = ('exit', 'zero')
_REMEDY = (
    'it holds the tokens of a CroprViT, and maps come from TokenReinsertion, which is first in neck '
    "(neck=[dict(type='TokenReinsertion'), …]); in Python, from feature.to_dense()"
)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Take whole rows of every sample.

    Args:
        x: (B, M, …) tensor.
        rows: (B, K) int64, rows of each sample, 0 ≤ row < M.

    Returns:
        (B, K, …) tensor with ``out[b, k] = x[b, rows[b, k]]``.
    """
    return take_numbered(x, row_numbers(rows, x.shape[1]))


def row_numbers(rows: Tensor, length: int) -> Tensor:
    """Numbers of rows (B, K) in a batch of samples that have ``length`` rows each, counted through all samples."""
    if len(rows) == 1:
        return rows
    return rows + torch.arange(0, len(rows) * length, length, device=rows.device).unsqueeze(1)


def take_numbered(x: Tensor, numbers: Tensor) -> Tensor:
    """As :func:`take_rows`, for rows counted through all samples (see :func:`row_numbers`)."""
    # One index_select on the flattened batch moves rows as blocks; a gather with an expanded index
    # would read an int64 for every single channel.
    return x.flatten(0, 1).index_select(0, numbers.flatten()).unflatten(0, numbers.shape)


def _shape(x: Tensor | None) -> str:
    return 'None' if x is None else f'{tuple(x.shape)} {str(x.dtype).replace("torch.", "")}'


@dataclass(frozen=True)
class SparseFeature:
    """One feature level whose tokens may be permuted or incomplete.

    Attributes:
        tokens: (B, K, C).
        index: (B, K) int64, raster position ``row * W + column`` of each token; no position twice.
            None: the tokens are complete and in raster order.
        grid: (H, W), the patch grid, in patches.
        num_active: the first ``num_active`` tokens were processed up to this level, the others were
            taken aside before and carry the value they left with. None: all were processed.
        prefix: (B, P, C) class and register tokens, or None.
        patch_size: pixels per patch side, where known; the stride of the map that the tokens make.

    It is no tensor: torch functions and attributes of tensors are answered with what to do (put ``TokenReinsertion``
    first in ``neck``).
    """

    tokens: Tensor
    index: Tensor | None
    grid: tuple[int, int]
    num_active: int | None = None
    prefix: Tensor | None = None
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(f'SparseFeature.tokens has shape {tuple(self.tokens.shape)}; (B, K, C) is expected')
        count, positions = self.tokens.shape[1], self.grid[0] * self.grid[1]
        if self.index is None:
            if count != positions:
                raise ValueError(
                    f'SparseFeature has {count} tokens and no index on a {self.grid[0]}×{self.grid[1]} grid; '
                    f'without an index all {positions} positions are needed'
                )
        elif self.index.shape != self.tokens.shape[:2] or self.index.dtype != torch.int64:
            raise ValueError(
                f'SparseFeature.index is {self.index.dtype} of shape {tuple(self.index.shape)}; int64 of shape '
                f'{tuple(self.tokens.shape[:2])}, as the tokens, is expected'
            )
        elif count > positions:
            raise ValueError(
                f'SparseFeature has {count} tokens on a {self.grid[0]}×{self.grid[1]} grid; at most {positions} fit'
            )

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> NoReturn:
        raise TypeError(f'{getattr(func, "__name__", func)} got a SparseFeature; {_REMEDY}')

    def __getattr__(self, name: str) -> NoReturn:
        # Copying and pickling look for methods that may be missing; no remedy is due there.
        remedy = '' if name.startswith('_') else f'; {_REMEDY}'
        raise AttributeError(f'SparseFeature has no attribute {name!r}{remedy}')

    def __repr__(self) -> str:
        parts: dict[str, Any] = {name: _shape(getattr(self, name)) for name in ('tokens', 'index', 'prefix')}
        parts.update(grid=self.grid, num_active=self.num_active, patch_size=self.patch_size)
        return f'SparseFeature({", ".join(f"{name}={value}" for name, value in parts.items())})'

    @property
    def complete(self) -> bool:
        """Whether there is a processed token at every position."""
        return self.num_active is None and self.tokens.shape[1] == self.grid[0] * self.grid[1]

    def to_dense(self, fill: str | Tensor = 'exit') -> Tensor:
        """Put the tokens back on the grid.

        Args:
            fill: what stands where no processed token is. ``'exit'``: tokens taken aside come back with the
                value they left with; ``'zero'``; or a tensor (C,), e.g. a learnt mask token. Positions that
                no token holds are 0, or the given tensor.

        Returns:
            (B, C, H, W); a view of ``tokens`` when they are complete and in raster order.

        Raises:
            ValueError: an unknown ``fill``.
        """
        if isinstance(fill, str) and fill not in FILLS:
            raise ValueError(f'fill={fill!r} is unknown; valid are {", ".join(map(repr, FILLS))} or a tensor (C,)')
        return self._raster(fill).transpose(1, 2).unflatten(2, self.grid)

    def _raster(self, fill: str | Tensor) -> Tensor:
        if self.index is None:
            return self.tokens
        batch, count, channels = self.tokens.shape
        tokens, index = self.tokens, self.index
        if not isinstance(fill, str) or fill == 'zero':
            count = count if self.num_active is None else self.num_active
            tokens, index = tokens[:, :count], index[:, :count]
        positions = self.grid[0] * self.grid[1]
        if count == positions:
            slot = torch.arange(count, device=index.device).expand(batch, count)
            return take_rows(tokens, torch.empty_like(index).scatter_(1, index, slot))
        base = tokens.new_zeros(channels) if isinstance(fill, str) else fill.to(tokens.dtype)
        dense = base.expand(batch * positions, channels)
        numbers = row_numbers(index, positions).flatten()
        return dense.index_copy(0, numbers, tokens.flatten(0, 1)).view(batch, positions, channels)
