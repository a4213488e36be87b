"""What attention needs to know of where tokens sit: RoPE angles and windows, looked up by position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Tokens, with_prefix
from .archs import Arch
from .rotary import Rotary, rotary_angles
from .windows import Windows, count_windows, places_in_window, window_ids


class Positions:
    """RoPE angles and windows of one patch grid, for one forward pass.

    Nothing in it depends on which tokens are current; the last lookup is kept, as the blocks between two pruners ask
    the same.

    Args:
        arch: shape of the model.
        grid: (H, W), the patch grid.
        window_size: side of a window in patches; None for global attention alone.
        device: of the tokens.

    Attributes:
        order: (N,) int64, all positions in the order in which complete tokens lie in memory: window by window, or in
            raster order where there are no windows.
    """

    def __init__(self, arch: Arch, grid: tuple[int, int], window_size: int | None, device: torch.device) -> None:
        self.arch, self.grid, self.device = arch, grid, device
        self.window_size = window_size or 0
        self.prefix = arch.num_prefix_tokens
        self.order = torch.arange(grid[0] * grid[1], device=device)
        if self.window_size:
            self._window_ids = window_ids(grid, self.window_size, device)
            self.order = self._window_ids.argsort(stable=True)
        self._tables: dict[bool, Tensor | None] = {}
        self._last: Tensor | None = None
        self._found: dict[bool, Rotary | None] = {}
        self._windows: Windows | None = None

    def arrange(self, x: Tensor) -> Tokens:
        """All tokens (B, P + N, D) in raster order → the same in ``order``."""
        if self.window_size:
            x = x.index_select(1, with_prefix(self.order, self.prefix))
        return Tokens(x, self.order.expand(len(x), -1))

    def rotary(self, position: Tensor, windowed: bool) -> Rotary | None:
        """Cosine and sine for the tokens at these positions (B, M), the prefix first; None without RoPE.

        Where attention is windowed, angles are those of a grid of one window, as in EVA-02's detectors.
        """
        self._look_at(position)
        if windowed not in self._found:
            table = self._table(windowed)
            if table is not None and not (self._complete(position) and not self.window_size):
                rows = position[0] if self._complete(position) else position
                if self.prefix:  # no prefix token turns, so that the first row serves them all
                    rows = F.pad(rows + self.prefix, (self.prefix, 0))
                table = table.index_select(0, rows.flatten()).unflatten(0, rows.shape)
            self._found[windowed] = None if table is None else Rotary(table)
        return self._found[windowed]

    def windows(self, position: Tensor) -> Windows:
        """The windows of the patch tokens at these positions (B, M), of a model that has windows."""
        self._look_at(position)
        if self._windows is None:
            divisible = all(side % self.window_size == 0 for side in self.grid)
            self._windows = Windows(
                window_id=self._window_ids[position],
                count=count_windows(self.grid, self.window_size),
                capacity=self.window_size**2,
                prefix=self.prefix,
                whole=self._complete(position) and divisible,
            )
        return self._windows

    def _look_at(self, position: Tensor) -> None:
        if position is not self._last:
            self._last, self._found, self._windows = position, {}, None

    def _complete(self, position: Tensor) -> bool:
        """Whether all tokens are current. They then lie in ``order`` in every sample."""
        return position.shape[1] == len(self.order)

    def _table(self, windowed: bool) -> Tensor | None:
        """Angles, (P + N, head_dim / 2, 2): of the prefix, then by position."""
        if windowed not in self._tables:
            grid = (self.window_size, self.window_size) if windowed else self.grid
            angles = rotary_angles(self.arch, grid, self.device)
            if windowed and angles is not None:
                places = places_in_window(self.grid, self.window_size, self.device) + self.prefix
                angles = torch.cat([angles[: self.prefix], angles[places]])
            self._tables[windowed] = angles
        return self._tables[windowed]
