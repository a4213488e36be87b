"""What attention needs to know of where tokens sit: RoPE angles and windows, looked up by position."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens
from ..utils.sizes import surely
from .archs import Arch
from .rotary import Rotary, rotary_angles
from .windows import Windows, count_windows, places_in_window, window_ids


class Positions:
    """RoPE angles and windows of one patch grid, for one forward pass.

    The last lookup is cached, as the blocks between two pruners ask the same.

    Args:
        arch: shape of the model.
        grid: (H, W), the patch grid.
        window_size: side of a window in patches; None for global attention alone.
        device: of the tokens.

    Attributes:
        order: (P + N,) int64, all positions in the order in which complete tokens lie in memory: the prefix, then
            the patches window by window, or in raster order where there are no windows.
    """

    def __init__(self, arch: Arch, grid: tuple[int, int], window_size: int | None, device: torch.device) -> None:
        self.arch, self.grid, self.device = arch, grid, device
        self.window_size = window_size or 0
        self.prefix = arch.num_prefix_tokens
        patches = grid[0] * grid[1]
        self.order = torch.arange(patches + self.prefix, device=device).roll(self.prefix)
        if self.window_size:
            self._window_ids = window_ids(grid, self.window_size, device)
            self.order = torch.cat([self.order[: self.prefix], self._window_ids.argsort(stable=True)])
        self._tables: dict[bool, Tensor | None] = {}
        self._last: Tensor | None = None
        self._found: dict[bool, Rotary | None] = {}
        self._windows: Windows | None = None

    def arrange(self, x: Tensor) -> Tokens:
        """All tokens (B, P + N, D), patches in raster order → the same in ``order``."""
        if self.window_size:
            x = x.index_select(1, (self.order + self.prefix) % self.order.shape[0])
        return Tokens(x, self.order.expand(x.shape[0], -1), self.prefix)

    def rotary(self, tokens: Tokens, windowed: bool) -> Rotary | None:
        """Cosine and sine for each of the tokens; None without RoPE.

        Where attention is windowed, angles are those of a grid of one window, as in EVA-02's detectors.
        """
        self._look_at(tokens)
        if windowed not in self._found:
            table = self._table(windowed)
            if table is not None:
                positions = tokens.all_positions
                if self._complete(tokens):  # the same tokens in every sample
                    positions = positions[0]
                table = table.index_select(0, positions.flatten()).unflatten(0, positions.shape)
            self._found[windowed] = None if table is None else Rotary(table)
        return self._found[windowed]

    def windows(self, tokens: Tokens) -> Windows:
        """The windows of the patch tokens, of a model that has windows."""
        self._look_at(tokens)
        if self._windows is None:
            divisible = all(side % self.window_size == 0 for side in self.grid)
            self._windows = Windows(
                window_id=self._window_ids[tokens.position],
                count=count_windows(self.grid, self.window_size),
                capacity=self.window_size**2,
                prefix=self.prefix,
                whole=self._complete(tokens) and divisible,
            )
        return self._windows

    def _look_at(self, tokens: Tokens) -> None:
        if tokens.all_positions is not self._last:
            self._last, self._found, self._windows = tokens.all_positions, {}, None

    def _complete(self, tokens: Tokens) -> bool:
        """Whether all tokens are current. They then lie in ``order`` in every sample."""
        return surely(tokens.all_positions.shape[1] == self.order.shape[0])

    def _table(self, windowed: bool) -> Tensor | None:
        """Angles by position, (N + P, head_dim / 2, 2). Prefix tokens do not turn."""
        if windowed not in self._tables:
            grid = (self.window_size, self.window_size) if windowed else self.grid
            angles = rotary_angles(self.arch, grid, self.device)
            if angles is not None:
                prefix, patches = angles[: self.prefix], angles[self.prefix :]
                if windowed:
                    patches = patches[places_in_window(self.grid, self.window_size, self.device)]
                angles = torch.cat([patches, prefix])
            self._tables[windowed] = angles
        return self._tables[windowed]
