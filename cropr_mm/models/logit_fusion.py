"""Early exit: pruned patches take the class that they were given as they left, the others that of the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LogitFusionHead(BaseModule):
    """A decode head of mmsegmentation whose logits give way to those of the tokens that left before.

    For ``pruning.fusion='logits'`` (the fusion of DToP, Tang et al., ICCV 2023): no token returns, and the logits of
    :class:`DifficultyPruner`'s linear classifier stand at pruned patches. ``TokenReinsertion(num_classes=…)`` gives
    them as its last map; the head gets the other maps. In training the loss is that of the logits so put together, so
    the head learns from the patches that it is asked for. Weights of the head by itself load as well.

    Args:
        head: config of the decode head, one that gives one map of logits and has ``loss_by_feat`` and
            ``predict_by_feat`` (any ``BaseDecodeHead`` that does not override ``loss`` or ``predict``).
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: a head that does not fit, or maps without logits.
    """

    def __init__(self, head: dict[str, Any], init_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(init_cfg)
        self.head = MODELS.build(head)
        name = type(self.head).__name__
        if not all(hasattr(self.head, part) for part in ('loss_by_feat', 'predict_by_feat', 'out_channels')):
            raise ValueError(f'LogitFusionHead.head.type={name!r}; a decode head of mmsegmentation is expected')
        # what mmsegmentation's EncoderDecoder reads
        self.align_corners, self.threshold = self.head.align_corners, self.head.threshold
        self.num_classes, self.out_channels = self.head.num_classes, self.head.out_channels
        if self.out_channels != self.num_classes:
            raise ValueError(
                f'LogitFusionHead.head.out_channels={self.out_channels}; num_classes, {self.num_classes}, is expected: '
                'one channel of logits for each class'
            )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of the levels and of the pruned patches' logits → logits (B, C, H, W)."""
        *levels, pruned = maps
        if not levels or pruned.shape[1] != self.num_classes + 1:
            raise ValueError(
                f'LogitFusionHead: the last of {len(maps)} maps has {pruned.shape[1]} channels; the logits of pruned '
                f"patches are expected there, from neck=[dict(type='TokenReinsertion', num_classes={self.num_classes})]"
            )
        logits = self.head(levels)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f'LogitFusionHead.head.type={type(self.head).__name__!r} gives a {type(logits).__name__}; a head that '
                'gives one map of logits is expected'
            )
        pruned = F.interpolate(pruned, logits.shape[-2:], mode='nearest')
        return torch.where(pruned[:, -1:] > 0, pruned[:, :-1].to(logits.dtype), logits)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(f'{prefix}head.')]:
            state_dict[f'{prefix}head.{key[len(prefix) :]}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def loss(self, maps: Sequence[Tensor], samples: Sequence[Any], train_cfg: Any) -> dict[str, Tensor]:
        """Losses of the head, of the logits so put together."""
        return self.head.loss_by_feat(self.forward(maps), samples)

    def predict(self, maps: Sequence[Tensor], metas: Sequence[dict[str, Any]], test_cfg: Any) -> Tensor:
        """Logits at the size of the images."""
        return self.head.predict_by_feat(self.forward(maps), metas)
