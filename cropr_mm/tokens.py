"""Tokens and the patch grid: the one place that permutes tokens, and the one that puts them on the grid.

Three integers address tokens, and no others: a *position* is a place on the patch grid in raster order,
``row * W + column``, and those of prefix tokens follow; a *row* is a place in a tensor; a *window id*
(:mod:`~cropr_mm.models.windows`) numbers the windows of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from .utils.sizes import surely

FILLS = ('exit', 'zero')
_REMEDY = (
    'it holds the tokens of a CroprViT, and maps come from TokenReinsertion, which is first in neck '
    "(neck=[dict(type='TokenReinsertion'), …]); in Python, from feature.to_dense()"
)


# --- rows -------------------------------------------------------------------------------------------------------


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Take whole rows of every sample.

    Args:
        x: (B, M, …) tensor.
        rows: (B, K) int64, rows of each sample, 0 ≤ row < M.

    Returns:
        (B, K, …) tensor with ``out[b, k] = x[b, rows[b, k]]``.
    """
    return take_flat_rows(x, flat_rows(rows, x.shape[1]))


def flat_rows(rows: Tensor, length: int) -> Tensor:
    """Rows (B, K) of samples that have ``length`` rows each, as rows of the flattened batch."""
    if rows.shape[0] == 1:
        return rows
    return torch.add(rows, torch.arange(rows.shape[0], device=rows.device).unsqueeze(1), alpha=length)


def take_flat_rows(x: Tensor, rows: Tensor) -> Tensor:
    """As :func:`take_rows`, for rows of the flattened batch (see :func:`flat_rows`)."""
    # One index_select on the flattened batch moves rows as blocks; a gather with an expanded index
    # would read an int64 for every single channel.
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


# --- current and removed tokens -----------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """The current tokens of a batch: P prefix tokens ([CLS] and register tokens), then M patch tokens.

    They begin in one order (:class:`~cropr_mm.models.positions.Positions`). Windowed attention relies on it, so in a
    model with windows what removes tokens leaves the others as they lay.

    Attributes:
        x: (B, P + M, D).
        all_positions: (B, P + M) int64, none twice. Those of prefix tokens follow the N patches: N … N + P - 1.
        num_prefix: P.
        size: (B, P + M) float32, how many positions each token stands for, or None: one each.
    """

    x: Tensor
    all_positions: Tensor
    num_prefix: int = 0
    size: Tensor | None = None

    @property
    def patches(self) -> Tensor:
        """(B, M, D)."""
        return self.x[:, self.num_prefix :]

    @property
    def position(self) -> Tensor:
        """(B, M) int64, the position of each patch token."""
        return self.all_positions[:, self.num_prefix :]

    @property
    def prefix(self) -> Tensor:
        """(B, P, D)."""
        return self.x[:, : self.num_prefix]

    def take(self, rows: Tensor) -> Tokens:
        """The tokens in ``rows`` (B, K), the prefix first."""
        size = None if self.size is None else self.size.gather(1, rows)
        return Tokens(take_rows(self.x, rows), self.all_positions.gather(1, rows), self.num_prefix, size)


class Removed(NamedTuple):
    """Patch tokens that left the current tokens, and how each of their positions comes back.

    A *pruned* token comes back with its own value ``x``; a *merged* one has none and comes back with the value that
    the token at position ``owner`` has by then, or, with ``weight``, with the weighted mean of several such values.
    One of ``x`` and ``owner`` is there.

    Attributes:
        position: (B, R) int64, of patch tokens.
        x: (B, R, D), or None.
        owner: (B, R) int64, or (B, R, k) with ``weight``, of patch tokens, or None. Owners may themselves be pruned or
            merged later on.
        prediction: (B, R, C), what was predicted of each token for good as it left (early exit), or None.
        weight: (B, R, k) float32, of each owner, adding up to 1 over k, or None.
    """

    position: Tensor
    x: Tensor | None = None
    owner: Tensor | None = None
    prediction: Tensor | None = None
    weight: Tensor | None = None


def rank(scores: Tensor) -> Tensor:
    """Rows of the tokens, best first.

    Args:
        scores: (B, M); higher is better. NaN ranks last. Ties keep their order.

    Returns:
        (B, M) int64, a permutation of 0 … M - 1 for each sample, whatever the scores are.
    """
    comparable = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return comparable.argsort(dim=1, descending=True, stable=True)


def split(tokens: Tokens, scores: Tensor, count: int, in_order: bool = True) -> tuple[Tokens, Removed]:
    """Prune the ``count`` patch tokens with the lowest scores.

    Args:
        tokens: M patch tokens, and any prefix tokens, which are always kept.
        scores: (B, M).
        count: 0 ≤ count < M.
        in_order: whether the kept tokens lie in the order in which they were, so that neighbours in memory stay
            neighbours, or, which saves a second sort, by their scores.

    Returns:
        The kept tokens, the prefix first, and the pruned ones.
    """
    # The prefix ranks first: nothing is above infinity, and ties keep their order.
    ranked = rank(F.pad(scores, (tokens.num_prefix, 0), value=torch.inf) if tokens.num_prefix else scores)
    kept, pruned = ranked.split([ranked.shape[1] - count, count], dim=1)
    removed = tokens.take(pruned)
    return tokens.take(kept.sort(dim=1).values if in_order else kept), Removed(removed.all_positions, removed.x)


def restore(tokens: Tokens, removed: Sequence[Removed], order: Tensor) -> Tokens:
    """Bring every position back.

    Args:
        tokens: the current tokens.
        removed: what left before, in the order in which it left; together they hold every position once.
        order: (P + N,) int64, all positions in the order in which they shall lie, those of the prefix first.

    Returns:
        P + N tokens, in that order in every sample.
    """
    x, row = _rows_by_position(tokens, removed, order.shape[0])
    return Tokens(take_rows(x, row.index_select(1, order)), order.expand(x.shape[0], -1), tokens.num_prefix)


def _rows_by_position(tokens: Tokens, removed: Sequence[Removed], positions: int) -> tuple[Tensor, Tensor]:
    """Current and pruned tokens in one tensor, and the row of each position in it (B, positions)."""
    own = [(part.x, part.position) for part in removed if part.x is not None]
    x, position = tokens.x, tokens.all_positions
    if own:
        x = torch.cat([x, *(values for values, _ in own)], dim=1)
        position = torch.cat([position, *(where for _, where in own)], dim=1)
    rows = torch.arange(position.shape[1], device=position.device).expand_as(position)
    row = position.new_zeros(position.shape[0], positions).scatter_(1, position, rows)
    return follow_owners(x, row, removed)


def follow_owners(x: Tensor, row: Tensor, removed: Sequence[Removed]) -> tuple[Tensor, Tensor]:
    """Give merged positions what they share.

    Args:
        x: (B, M, D), values.
        row: (B, N) int64, the row in ``x`` of each position; those of merged positions may be anything.
        removed: in the order in which they left.

    Returns:
        ``x``, and after it the weighted means of those that have several owners; and the row of each position.
    """
    for part in reversed(removed):  # the last merge first: an owner may have been merged itself later on
        if part.owner is None:
            continue
        rows = row.gather(1, part.owner.flatten(1))
        if part.weight is not None:
            shared = take_rows(x, rows).unflatten(1, part.owner.shape[1:])
            first = shared[:, :, 0]  # equal values have exactly that value as their mean
            mean = first + (part.weight.unsqueeze(-1) * (shared - first.unsqueeze(2))).sum(dim=2).to(x.dtype)
            rows = torch.arange(x.shape[1], x.shape[1] + mean.shape[1], device=row.device).expand_as(part.position)
            x = torch.cat([x, mean], dim=1)
        row = row.scatter(1, part.position, rows)
    return x, row


# --- on the grid --------------------------------------------------------------------------------------------------


def _shape(x: Tensor | None) -> str:
    return 'None' if x is None else f'{tuple(x.shape)} {str(x.dtype).replace("torch.", "")}'


@dataclass(frozen=True, eq=False)
class SparseFeature:
    """One feature level whose tokens may be permuted or incomplete.

    Attributes:
        tokens: (B, K, C), the current patch tokens at this level.
        position: (B, K) int64, raster position ``row * W + column`` of each token; no position twice.
            None: the tokens are complete and in raster order.
        grid: (H, W), the patch grid, in patches.
        removed: what left before this level, in the order in which it left.
        prefix: (B, P, C) [CLS] and register tokens, or None.
        patch_size: pixels per patch side, where known; the stride of the map that the tokens make.

    It is no tensor: torch functions and attributes of tensors are answered with what to do (put ``TokenReinsertion``
    first in ``neck``).
    """

    tokens: Tensor
    position: Tensor | None
    grid: tuple[int, int]
    removed: tuple[Removed, ...] = ()
    prefix: Tensor | None = None
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(f'SparseFeature.tokens has shape {tuple(self.tokens.shape)}; (B, K, C) is expected')
        count, grid = self.num_held, f'{self.grid[0]}×{self.grid[1]} grid'
        if self.position is None:
            if surely(count != self.num_positions):
                raise ValueError(
                    f'SparseFeature has {count} tokens and no position on a {grid}; '
                    f'without positions all {self.num_positions} tokens are needed'
                )
        elif self.position.shape != self.tokens.shape[:2] or self.position.dtype != torch.int64:
            raise ValueError(
                f'SparseFeature.position is {self.position.dtype} of shape {tuple(self.position.shape)}; int64 of '
                f'shape {tuple(self.tokens.shape[:2])}, as the tokens, is expected'
            )
        elif surely(count > self.num_positions):
            raise ValueError(f'SparseFeature has {count} tokens on a {grid}; at most {self.num_positions} fit')

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
        parts: dict[str, Any] = {name: _shape(getattr(self, name)) for name in ('tokens', 'position', 'prefix')}
        parts.update(grid=self.grid, removed=self.num_held - self.tokens.shape[1], patch_size=self.patch_size)
        return f'SparseFeature({", ".join(f"{name}={value}" for name, value in parts.items())})'

    @property
    def num_positions(self) -> int:
        """Positions of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def num_held(self) -> int:
        """Positions that something is known of: current and removed tokens."""
        return self.tokens.shape[1] + sum(part.position.shape[1] for part in self.removed)

    @property
    def complete(self) -> bool:
        """Whether a current token stands for every position."""
        return surely(self.num_held == self.num_positions) and all(part.owner is not None for part in self.removed)

    def clone(self) -> SparseFeature:
        """The same, in memory of its own."""

        def copied(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.clone()

        return replace(
            self,
            tokens=self.tokens.clone(),
            position=copied(self.position),
            prefix=copied(self.prefix),
            removed=tuple(Removed(part.position.clone(), *map(copied, part[1:])) for part in self.removed),
        )

    def to_dense(self, fill: str | Tensor = 'exit') -> Tensor:
        """Put the tokens back on the grid. Positions that were merged get what they share.

        Args:
            fill: what stands at pruned positions. ``'exit'``: each token's value as it was pruned; ``'zero'``; or a
                tensor (C,), such as a learned mask token. Positions that no token holds are 0, or the given tensor.

        Returns:
            (B, C, H, W); a view of ``tokens`` when they are complete and in raster order.

        Raises:
            ValueError: an unknown ``fill``.
        """
        if isinstance(fill, str) and fill not in FILLS:
            raise ValueError(f'fill={fill!r} is unknown; valid are {", ".join(map(repr, FILLS))} or a tensor (C,)')
        return self._raster(fill).transpose(1, 2).unflatten(2, self.grid)

    def predictions(self, channels: int) -> Tensor:
        """What was predicted of tokens as they were removed, on the grid.

        Args:
            channels: C of :attr:`Removed.prediction`.

        Returns:
            (B, C + 1, H, W): the predictions, and 1 where there is one; 0 everywhere else.

        Raises:
            ValueError: predictions of another number of channels.
        """
        dense = self.tokens.new_zeros(self.tokens.shape[0], self.num_positions, channels + 1)
        for part in self.removed:
            if part.prediction is None:
                continue
            if part.prediction.shape[2] != channels:
                raise ValueError(f'predictions of {part.prediction.shape[2]} channels; {channels} are expected')
            there = F.pad(part.prediction.to(dense.dtype), (0, 1), value=1.0)
            dense = dense.scatter(1, part.position.unsqueeze(-1).expand_as(there), there)
        return dense.transpose(1, 2).unflatten(2, self.grid)

    def mean(self) -> Tensor:
        """Mean (B, C) over the positions that current tokens stand for; pruned ones do not count."""
        merged = [(part.position, part.owner, part.weight) for part in self.removed if part.owner is not None]
        if not merged or self.position is None:
            return self.tokens.mean(dim=1)
        # float32: half precision counts to 2048 or 256
        size = self.tokens.new_ones(self.tokens.shape[0], self.num_positions, dtype=torch.float32)
        for position, owner, weight in merged:  # the first merge first: an owner passes on what it has got
            own = size.gather(1, position)
            own = own if weight is None else own.unsqueeze(-1) * weight.float()
            size = size.scatter_add(1, owner.flatten(1), own.flatten(1))
        size = size.gather(1, self.position).unsqueeze(-1)
        return ((self.tokens * size).sum(dim=1) / size.sum(dim=1)).to(self.tokens.dtype)

    def _raster(self, fill: str | Tensor) -> Tensor:
        """(B, N, C)."""
        if self.position is None:
            return self.tokens
        exits = isinstance(fill, str) and fill == 'exit'
        current = Tokens(self.tokens, self.position)
        if self.complete or (exits and surely(self.num_held == self.num_positions)):
            return take_rows(*_rows_by_position(current, self.removed, self.num_positions))
        dense = self._background(fill)
        for position, x in [(self.position, self.tokens), *((part.position, part.x) for part in self.removed if exits)]:
            if x is not None:
                dense = dense.index_copy(0, flat_rows(position, self.num_positions).flatten(), x.flatten(0, 1))
        dense = dense.view(self.tokens.shape[0], self.num_positions, -1)
        if all(part.owner is None for part in self.removed):
            return dense
        row = torch.arange(self.num_positions, device=dense.device).expand(dense.shape[0], -1)
        return take_rows(*follow_owners(dense, row, self.removed))

    def _background(self, fill: str | Tensor) -> Tensor:
        """(B * N, C), the same value everywhere."""
        channels = self.tokens.shape[2]
        value = self.tokens.new_zeros(channels) if isinstance(fill, str) else fill.to(self.tokens.dtype)
        return value.expand(self.tokens.shape[0] * self.num_positions, channels)
