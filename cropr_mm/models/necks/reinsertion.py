"""From tokens to maps, or to a vector for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...tokens import FILLS, SparseFeature
from ...utils.checks import check_integer
from ...utils.compat import makes_graph


@MODELS.register_module()
class TokenReinsertion(BaseModule):
    """Puts the tokens of every level back on the grid.

    Args:
        fill: what stands at pruned positions where no fusion brought the tokens back: ``'exit'``, each token's value
            as it was pruned; ``'zero'``; ``'mask_token'``, a learned vector.
        embed_dim: channels of a token; needed for ``'mask_token'``.
        num_classes: classes C; with ``pruning.fusion='logits'``, whose logits then follow the levels as one more map
            (:meth:`~cropr_mm.tokens.SparseFeature.predictions`), for
            :class:`~cropr_mm.models.logit_fusion.LogitFusionHead`.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: an unknown ``fill``, or a mask token without ``embed_dim``.
    """

    def __init__(
        self,
        fill: str = 'exit',
        embed_dim: int | None = None,
        num_classes: int | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes = None if num_classes is None else check_integer('TokenReinsertion.num_classes', num_classes)
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
        maps = [plain(feature.to_dense(fill)) for feature in features]
        if isinstance(fill, Tensor) and self.training and all(feature.complete for feature in features):
            # Nothing is missing yet (start of the curriculum). DDP expects a gradient for every parameter all the same.
            maps[-1] = maps[-1] + 0 * fill.sum()
        for level, feature in zip(maps, features):
            note_stride(level, feature.patch_size)
        if self.num_classes is not None:
            maps.append(plain(features[-1].predictions(self.num_classes)))
        elif any(part.prediction is not None for part in features[-1].removed):
            raise ValueError(
                'TokenReinsertion.num_classes=None, but pruned tokens left predictions, which would be lost; the '
                "number of classes is expected (pruning.fusion='logits')"
            )
        return tuple(maps)


@MODELS.register_module()
class TokenPooling(BaseModule):
    """One vector for each image and level, what classification heads read.

    Args:
        mode: ``'cls'``, the [CLS] token; ``'avg'``, the mean over the positions of the tokens that are current at the
            level (pruned ones do not count); ``'all'``, that over current tokens, prefix included, as published.
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
        if mode not in ('cls', 'avg', 'all'):
            raise ValueError(f"mode={mode!r} is unknown; valid are 'cls', 'avg', 'all'")
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
            return feature.mean()
        if self.mode == 'all':
            prefix = feature.tokens[:, :0] if feature.prefix is None else feature.prefix
            return torch.cat([prefix, feature.tokens], dim=1).mean(dim=1)
        if feature.prefix is None or not feature.prefix.shape[1]:
            raise ValueError(
                "TokenPooling(mode='cls'): the backbone has no [CLS] token; choose mode='avg' or an arch with "
                'class_token=True'
            )
        return feature.prefix[:, 0]


def _check_features(features: Any, who: str) -> None:
    levels = features if isinstance(features, (list, tuple)) else [features]
    wrong = next((f for f in levels if not isinstance(f, SparseFeature)), None if levels is features else features)
    if wrong is not None:
        raise TypeError(
            f'{who} got a {type(wrong).__name__}; it expects the tuple of SparseFeatures of a CroprViT '
            f'and stands directly after it (neck=[dict(type="{who}"), …])'
        )


def note_stride(level: Tensor, stride: int | None) -> None:
    """Write the stride of a map, in pixels, on the tensor itself: a pyramid that follows compares it with its own.

    Not while a graph is made of the model (tracing, compiling, exporting), where nothing can be compared.
    """
    if stride is not None and not makes_graph():
        level.cropr_stride = stride  # type: ignore[attr-defined]


def plain(x: Tensor) -> Tensor:
    """Channels in front in memory too: mmcv's compiled operators (RoIAlign) read maps without regard to strides."""
    return x.contiguous()
