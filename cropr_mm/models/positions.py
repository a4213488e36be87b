"""Where the tokens at hand sit, as far as attention needs to know it."""

from __future__ import annotations

import torch
from torch import Tensor

from .archs import Arch
from .rotary import Rotary, rotary_angles
from .windows import Windows, count_windows, places_in_window, window_numbers


class Geometry:
    """Rotary angles and windows of the tokens in one forward pass.

    Both are looked up when a block first asks for them, and anew when other tokens are at hand.

    Args:
        arch: shape of the model.
        grid: (H, W), the patch grid.
        window_size: side of a window in patches; None for global attention alone.
        device: of the tokens.

    Attributes:
        order: (P + N,) int64, the positions of a complete set of tokens in the order in which they lie in memory:
            prefix tokens first, then window by window, or in raster order where there are no windows.
    """

    def __init__(self, arch: Arch, grid: tuple[int, int], window_size: int | None, device: torch.device) -> None:
        self.arch, self.grid, self.device = arch, grid, device
        self.window_size = window_size or 0
        self.prefix, patches = arch.num_prefix_tokens, grid[0] * grid[1]
        self.order = torch.arange(self.prefix + patches, device=device)
        if self.window_size:
            self._number = window_numbers(grid, self.window_size, device)
            by_window = self._number.argsort(stable=True)
            self.order = torch.cat([self.order[: self.prefix], by_window + self.prefix])
        self._tables: dict[bool, Tensor | None] = {}
        self.complete(1)

    def complete(self, batch: int) -> Tensor:
        """All tokens are at hand; returns their positions (B, P + N)."""
        self._at_hand(self.order.expand(batch, -1), shared=True)
        return self._position

    def select(self, position: Tensor) -> None:
        """Tokens at these positions (B, M) are at hand, in the order in which they lay before."""
        self._at_hand(position, shared=False)

    def _at_hand(self, position: Tensor, shared: bool) -> None:
        self._position, self._shared = position, shared  # shared: the same tokens in every sample
        self._rotary: dict[bool, Rotary | None] = {}
        self._windows: Windows | None = None

    def rotary(self, windowed: bool) -> Rotary | None:
        """Cosine and sine for each token; None for no rotation.

        Where attention is windowed, angles are those of a grid of one window, as in EVA-02's detectors.
        """
        if windowed not in self._rotary:
            table = self._table(windowed)
            if table is not None and (self.window_size or not self._shared):  # otherwise all, in the table's order
                position = self._position[0] if self._shared else self._position
                table = table.index_select(0, position.flatten()).unflatten(0, position.shape)
            self._rotary[windowed] = None if table is None else Rotary(table)
        return self._rotary[windowed]

    def _table(self, windowed: bool) -> Tensor | None:
        """Angles by position, (P + N, head_dim / 2, 2)."""
        if windowed not in self._tables:
            grid = (self.window_size, self.window_size) if windowed else self.grid
            angles = rotary_angles(self.arch, grid, self.device)
            if windowed and angles is not None:
                places = places_in_window(self.grid, self.window_size, self.device) + self.prefix
                angles = torch.cat([angles[: self.prefix], angles[places]])
            self._tables[windowed] = angles
        return self._tables[windowed]

    def windows(self) -> Windows:
        """The windows of the tokens at hand, of a model that has windows."""
        if self._windows is None:
            divisible = all(side % self.window_size == 0 for side in self.grid)
            self._windows = Windows(
                number=self._number[self._position[:, self.prefix :] - self.prefix],
                count=count_windows(self.grid, self.window_size),
                capacity=self.window_size**2,
                prefix=self.prefix,
                whole=self._shared and divisible,
            )
        return self._windows
