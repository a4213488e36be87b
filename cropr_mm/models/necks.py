"""From tokens to what stock heads read: maps, or a vector for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..tokens import FILLS, SparseFeature


@MODELS.register_module()
class TokenReinsertion(BaseModule):
    """Puts the tokens of every level back on the grid.

    Args:
        fill: what stands at the tokens taken aside where no fusion brought them up to date: ``'exit'``, the value
            they left with; ``'zero'``; ``'mask_token'``, a learnt vector.
        embed_dim: channels of a token; needed for ``'mask_token'``.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: an unknown ``fill``, or a mask token without ``embed_dim``.
    """

    def __init__(
        self, fill: str = 'exit', embed_dim: int | None = None, init_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__(init_cfg)
        if fill not in (*FILLS, 'mask_token'):
            raise ValueError(f"fill={fill!r} is unknown; valid are 'exit', 'zero', 'mask_token'")
        if fill == 'mask_token' and not embed_dim:
            raise ValueError(f"fill='mask_token' with embed_dim={embed_dim!r}; the channels of a token are needed")
        self.fill = fill
        if fill == 'mask_token':
            self.mask_token = nn.Parameter(torch.zeros(embed_dim or 0))
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, features: Sequence[SparseFeature]) -> tuple[Tensor, ...]:
        """SparseFeatures → maps (B, C, H, W), contiguous in memory, one per level."""
        _check_features(features, 'TokenReinsertion')
        fill = self.mask_token if self.fill == 'mask_token' else self.fill
        maps = [_plain(feature.to_dense(fill)) for feature in features]
        if isinstance(fill, Tensor) and self.training and all(feature.index is None for feature in features):
            # Nothing is missing yet (start of the curriculum). DDP expects a gradient for every parameter all the same.
            maps[-1] = maps[-1] + 0 * fill.sum()
        return tuple(maps)


@MODELS.register_module()
class TokenPooling(BaseModule):
    """One vector for each image and level, what classification heads read.

    Args:
        mode: ``'cls'``, the class token; ``'avg'``, the mean of the patch tokens that were processed up to the
            level (tokens taken aside and not brought back do not count).
        norm: whether a LayerNorm follows, as in models that normalise after averaging (MAE's ``fc_norm``; the
            backbone then takes ``final_norm=False``).
        embed_dim: channels of a token; needed for ``norm``.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: an unknown ``mode``, or ``norm`` without ``embed_dim``.
    """

    def __init__(
        self,
        mode: str = 'cls',
        norm: bool = False,
        embed_dim: int | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if mode not in ('cls', 'avg'):
            raise ValueError(f"mode={mode!r} is unknown; valid are 'cls', 'avg'")
        if norm and not embed_dim:
            raise ValueError(f'norm=True with embed_dim={embed_dim!r}; the channels of a token are needed')
        self.mode = mode
        self.norm = nn.LayerNorm(embed_dim or 0, eps=1e-6) if norm else nn.Identity()

    def forward(self, features: Sequence[SparseFeature]) -> tuple[Tensor, ...]:
        """SparseFeatures → vectors (B, C), one per level."""
        _check_features(features, 'TokenPooling')
        return tuple(self.norm(self._pool(feature)) for feature in features)

    def _pool(self, feature: SparseFeature) -> Tensor:
        if self.mode == 'avg':
            return feature.tokens[:, : feature.num_active].mean(dim=1)
        if feature.prefix is None or not feature.prefix.shape[1]:
            raise ValueError(
                "TokenPooling(mode='cls'): the backbone has no class token; choose mode='avg' or an arch with "
                'class_token=True'
            )
        return feature.prefix[:, 0]


def _check_features(features: Any, who: str) -> None:
    levels = features if isinstance(features, (list, tuple)) else [features]
    wrong = next((f for f in levels if not isinstance(f, SparseFeature)), None if levels is features else features)
    if wrong is not None:
        raise TypeError(
            f'{who} got a {type(wrong).__name__}; it expects the tuple of SparseFeatures of a CroprViT '
            f'and stands directly behind it (neck=[dict(type="{who}"), …])'
        )


def _plain(x: Tensor) -> Tensor:
    """Channels in front in memory too: mmcv's compiled operators (RoIAlign) read maps without regard to strides."""
    return x.contiguous()


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
        layers: list[nn.Module] = []
        channels = in_channels
        for i in range(step):
            if i:
                layers += [ChannelNorm(channels, eps=1e-6), nn.GELU()]
            layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
            channels //= 2
        if step < 0:
            layers.append(nn.MaxPool2d(2**-step, ceil_mode=True))
        return nn.Sequential(
            *layers,
            nn.Conv2d(channels, out_channels, 1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels, eps=1e-6),
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps, of which the last one (B, C, H, W) is read → contiguous maps, one per stride, fine to coarse."""
        if not isinstance(maps, (list, tuple)) or not maps or not isinstance(maps[-1], Tensor):
            found = type(maps[-1] if isinstance(maps, (list, tuple)) and maps else maps).__name__
            raise TypeError(
                f'SimpleFeaturePyramid got a {found}; it expects a tuple of maps (B, C, H, W), as TokenReinsertion in '
                'front of it gives (neck=[dict(type="TokenReinsertion"), dict(type="SimpleFeaturePyramid", …)])'
            )
        pyramid = [_plain(level(maps[-1])) for level in self.levels]
        for _ in range(self.num_pooled):
            pyramid.append(F.max_pool2d(pyramid[-1], 1, 2))
        return tuple(pyramid)
