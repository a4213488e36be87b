"""From one map to the pyramid that heads of dense prediction read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .reinsertion import plain


@MODELS.register_module()
class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W); for heads, ``norm_cfg=dict(type='ChannelNorm')``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def power_of_two(channels: int, step: int) -> tuple[list[nn.Module], int]:
    """Layers that scale a map by ``2 ** step``, and the channels behind them; each doubling halves the channels."""
    layers: list[nn.Module] = []
    for i in range(step):
        if i:
            layers += [ChannelNorm(channels, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    if step < 0:
        layers.append(nn.MaxPool2d(2**-step, ceil_mode=True))
    return layers, channels


def last_map(maps: Any, who: str) -> Tensor:
    """The last of the maps that a pyramid is given, or an error that says what stands in front of it."""
    if not isinstance(maps, (list, tuple)) or not maps or not isinstance(maps[-1], Tensor):
        found = type(maps[-1] if isinstance(maps, (list, tuple)) and maps else maps).__name__
        raise TypeError(
            f'{who} got a {found}; it expects a tuple of maps (B, C, H, W), as TokenReinsertion in '
            f'front of it gives (neck=[dict(type="TokenReinsertion"), dict(type="{who}", …)])'
        )
    return maps[-1]


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Pyramid from the last map of a plain backbone (ViTDet, arXiv 2203.16527, section 3).

    Each level scales the one map: ×2 by a transposed convolution, ÷2 by max pooling; then 1×1 and 3×3
    convolutions, each with LayerNorm over the channels. Levels coarser than ÷2 subsample the coarsest of these.

    Args:
        in_channels: channels of the map.
        out_channels: channels of every level.
        in_stride: stride of the map in pixels, the backbone's patch size.
        strides: strides of the levels in pixels, ascending; each a power of two times or over ``in_stride``.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: strides that no power of two reaches, or too few channels to halve at each doubling.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        in_stride: int = 16,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        steps = [math.log2(in_stride / stride) if stride > 0 else math.nan for stride in strides]
        if not steps or not all(step.is_integer() for step in steps) or steps != sorted(set(steps), reverse=True):
            raise ValueError(
                f'strides={tuple(strides)} with in_stride={in_stride}; ascending strides, each a power '
                'of two times or over in_stride, are expected'
            )
        halvings = max(int(steps[0]), 0)  # each ×2 halves the channels
        if in_channels < 2**halvings:
            raise ValueError(
                f'in_channels={in_channels} with strides={tuple(strides)} and in_stride={in_stride}; at least '
                f'{2**halvings} are expected, as each doubling of the resolution halves the channels'
            )
        self.strides = tuple(strides)
        self.levels = nn.ModuleList()
        self.num_pooled = 0
        for step in map(int, steps):
            if step < -1 and len(self.levels):
                self.num_pooled += 1
            else:
                self.levels.append(self._level(in_channels, out_channels, step))

    @staticmethod
    def _level(in_channels: int, out_channels: int, step: int) -> nn.Sequential:
        layers, channels = power_of_two(in_channels, step)
        return nn.Sequential(
            *layers,
            nn.Conv2d(channels, out_channels, 1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps, of which the last one (B, C, H, W) is read → contiguous maps, one per stride, fine to coarse."""
        last = last_map(maps, 'SimpleFeaturePyramid')
        pyramid = [plain(level(last)) for level in self.levels]
        for _ in range(self.num_pooled):
            pyramid.append(F.max_pool2d(pyramid[-1], 1, 2))
        return tuple(pyramid)
