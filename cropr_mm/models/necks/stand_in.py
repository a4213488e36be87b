"""Feature maps like those of the backbone that was replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .pyramid import ChannelNorm, last_map, power_of_two, stretch
from .reinsertion import plain


@MODELS.register_module()
class StandInPyramid(BaseModule):
    """Imitates the feature maps (channels, strides) of a replaced backbone, so that its neck and heads work unchanged.

    The map is brought to each stride once, as in :class:`SimpleFeaturePyramid` (×2 by transposed convolutions, ÷2 by
    max pooling) and bilinearly where no power of two leads there. Then each level has a 1×1 convolution and
    LayerNorm over the channels. The 3×3 convolution of ViTDet is left out: with the 2048 channels that a dilated
    ResNet has at stride 8 it would cost more than the backbone, and the necks and heads that follow have their own.

    Args:
        in_channels: channels of the map.
        out_channels: channels of each level.
        strides: stride of each level in pixels, in any order; they may repeat.
        in_stride: stride of the map in pixels, the backbone's patch size. A map of another stride is an error.
        readout: whether each level is a pair of the map and its mean (B, C), for heads that read a [CLS] token
            beside each map (DPT).
        eval_level: the level that evaluation gives alone, without a tuple around it, for heads that read the others
            in training only (DDRNet, PIDNet).
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: numbers out of range, or too few channels to halve at each doubling.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Sequence[int],
        strides: Sequence[int],
        in_stride: int = 16,
        readout: bool = False,
        eval_level: int | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not strides or len(strides) != len(out_channels) or min(*strides, *out_channels, in_stride) < 1:
            raise ValueError(
                f'out_channels={tuple(out_channels)} with strides={tuple(strides)} and in_stride={in_stride}; positive '
                'numbers are expected, and one of out_channels for each of strides'
            )
        if eval_level is not None and eval_level not in range(len(strides)):
            raise ValueError(f'eval_level={eval_level!r}; None or one of 0 to {len(strides) - 1} is expected')
        steps = {stride: round(math.log2(in_stride / stride)) for stride in sorted(set(strides))}
        if in_channels < 2 ** max(*steps.values(), 0):
            raise ValueError(
                f'in_channels={in_channels} with strides={tuple(strides)} and in_stride={in_stride}; at least '
                f'{2 ** max(steps.values())} are expected, as each doubling of the resolution halves the channels'
            )
        self.strides, self.in_stride = tuple(strides), in_stride
        self.readout, self.eval_level = readout, eval_level
        scales = {stride: power_of_two(in_channels, step) for stride, step in steps.items()}
        self.scales = nn.ModuleDict({str(stride): nn.Sequential(*layers) for stride, (layers, _) in scales.items()})
        self.stretches = {stride: in_stride / stride / 2**step for stride, step in steps.items()}
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(scales[stride][1], channels, 1, bias=False), ChannelNorm(channels, eps=1e-6))
            for stride, channels in zip(strides, out_channels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Any:
        """Maps, of which the last one (B, C, H, W) is read → a tuple of contiguous maps, as ``strides`` says."""
        last = last_map(maps, 'StandInPyramid', self.in_stride)
        scaled = {stride: self._scale(last, stride) for stride in set(self.strides)}
        levels = [plain(level(scaled[stride])) for stride, level in zip(self.strides, self.levels)]
        outputs = tuple((level, level.mean((2, 3))) for level in levels) if self.readout else tuple(levels)
        return outputs if self.training or self.eval_level is None else outputs[self.eval_level]

    def _scale(self, x: Tensor, stride: int) -> Tensor:
        height, width = (max(1, round(side * self.in_stride / stride)) for side in x.shape[2:])
        return stretch(self.scales[str(stride)](x), self.stretches[stride], (height, width))
