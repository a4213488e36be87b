"""From one map to the pyramid that heads of dense prediction read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...utils.sizes import surely
from .reinsertion import plain


@MODELS.register_module()
class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W); for heads, ``norm_cfg=dict(type='ChannelNorm')``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def power_of_two(channels: int, step: int) -> tuple[list[nn.Module], int]:
    """Layers that scale a map by ``2 ** step``, and the channels after them; each doubling halves the channels."""
    layers: list[nn.Module] = []
    for i in range(step):
        if i:
            layers += [ChannelNorm(channels, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    if step < 0:
        layers.append(CeilPool(2**-step))
    return layers, channels


class CeilPool(nn.MaxPool2d):
    """Max pooling whose last windows may reach over the border: ``ceil_mode``, for sizes that an export leaves open."""

    def forward(self, x: Tensor) -> Tensor:
        size: Any = self.kernel_size
        if not all(surely(side % size == 0) for side in x.shape[2:]):
            x = F.pad(x, (0, size - 1, 0, size - 1), value=-math.inf)  # a window that holds nothing else is left out
        return super().forward(x)


def stretch(x: Tensor, factor: float, size: tuple[int, int]) -> Tensor:
    """Scale a map bilinearly by exactly this factor, to a size that may round.

    Cells keep their stride to the pixel, as anchors and points are laid out by it; what an uneven side leaves over is
    cut off, or filled by repeating the border.
    """
    if factor == 1:
        return x
    filled = F.pad(x, (0, 2, 0, 2), mode='replicate')
    stretched = F.interpolate(filled, scale_factor=factor, mode='bilinear', align_corners=False)
    return stretched[:, :, : size[0], : size[1]]


class Stretch(nn.Module):
    """:func:`stretch` by a fixed factor, as a layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        height, width = (max(1, round(side * self.factor)) for side in x.shape[2:])
        return stretch(x, self.factor, (height, width))


def last_map(maps: Any, who: str, in_stride: int) -> Tensor:
    """The last of the maps that a pyramid is given.

    Raises:
        TypeError: what stands before the pyramid gives no maps.
        ValueError: the map has another stride than the pyramid was built for.
    """
    if not isinstance(maps, (list, tuple)) or not maps or not isinstance(maps[-1], Tensor):
        found = type(maps[-1] if isinstance(maps, (list, tuple)) and maps else maps).__name__
        raise TypeError(
            f'{who} got a {found}; it expects a tuple of maps (B, C, H, W), as TokenReinsertion in '
            f'front of it gives (neck=[dict(type="TokenReinsertion"), dict(type="{who}", …)])'
        )
    check_stride(who, in_stride, getattr(maps[-1], 'cropr_stride', in_stride))
    return maps[-1]


def check_stride(who: str, in_stride: int, patch_size: int) -> None:
    """Raise ValueError where a pyramid takes the maps of a backbone for maps of another stride."""
    if in_stride != patch_size:
        raise ValueError(
            f'{who}.in_stride={in_stride}, but backbone.patch_size={patch_size}, so all levels would have other '
            f'strides than heads and anchors assume; set in_stride={patch_size} in neck'
        )


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Pyramid from the last map of a plain backbone (ViTDet, arXiv 2203.16527, section 3).

    Each level scales the one map: ×2 by a transposed convolution, ÷2 by max pooling, and bilinearly where no power of
    two leads to its stride (patches of 14 pixels); then 1×1 and 3×3 convolutions, each with LayerNorm over the
    channels. A level that is coarser than ÷2 and has twice the stride of the one before subsamples that one.

    Args:
        in_channels: channels of the map.
        out_channels: channels of every level.
        in_stride: stride of the map in pixels, the backbone's patch size. A map of another stride is an error.
        strides: strides of the levels in pixels, ascending.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: strides that do not ascend, or too few channels to halve at each doubling.
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
        if not strides or min(*strides, in_stride) < 1 or list(strides) != sorted(set(strides)):
            raise ValueError(
                f'strides={tuple(strides)} with in_stride={in_stride}; positive and ascending strides are expected'
            )
        steps = [round(math.log2(in_stride / stride)) for stride in strides]
        halvings = max(steps[0], 0)  # each ×2 halves the channels
        if in_channels < 2**halvings:
            raise ValueError(
                f'in_channels={in_channels} with strides={tuple(strides)} and in_stride={in_stride}; at least '
                f'{2**halvings} are expected, as each doubling of the resolution halves the channels'
            )
        self.strides, self.in_stride = tuple(strides), in_stride
        self.levels = nn.ModuleList()
        self.num_pooled = 0
        for i, (stride, step) in enumerate(zip(strides, steps)):
            if step < -1 and i and stride == 2 * strides[i - 1]:
                self.num_pooled += 1
            else:
                self.levels.append(self._level(in_channels, out_channels, step, stride))

    def _level(self, in_channels: int, out_channels: int, step: int, stride: int) -> nn.Sequential:
        layers, channels = power_of_two(in_channels, step)
        factor = self.in_stride / stride / 2**step
        if factor != 1:
            layers.append(Stretch(factor))
        return nn.Sequential(
            *layers,
            nn.Conv2d(channels, out_channels, 1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps, of which the last one (B, C, H, W) is read → contiguous maps, one per stride, fine to coarse."""
        last = last_map(maps, 'SimpleFeaturePyramid', self.in_stride)
        pyramid = [plain(level(last)) for level in self.levels]
        for _ in range(self.num_pooled):
            pyramid.append(F.max_pool2d(pyramid[-1], 1, 2))
        return tuple(pyramid)
