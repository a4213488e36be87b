"""A scorer whose attention learns where a shallow classifier still fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...tokens import take_rows
from .aux_heads import BaseAuxHead
from .cropr import CroprPruner
from .targets import for_batch, patch_classes


@dataclass(frozen=True)
class TokenPrediction:
    """What :class:`DifficultyPruner` predicts for N patch tokens.

    Attributes:
        scores: (B, N), the scorer's attention logits.
        logits: (B, N, C + 1), the class of each token; the last one is background.
        index: (B, N) int64, raster positions.
    """

    scores: Tensor
    logits: Tensor
    index: Tensor


@MODELS.register_module()
class TokenClassAuxHead(BaseAuxHead):
    """What each patch token alone shows, and the attention that follows from where it does not yet show it.

    LayerNorm and a linear layer classify each token; cross-entropy with the share of each class in its patch. The
    scorer's attention ``softmax_m(q · x_m)`` over the tokens of an image is drawn to each token's share of that
    image's cross-entropy, ``c_m / Σ c`` (listwise cross-entropy, as ListNet ranks by; Cao et al., ICML 2007): tokens
    that one linear layer can name need no further blocks, the others do. Nothing of this reaches the backbone.

    Classes come from the label map, or from the boxes, with background as a class of its own.

    Args:
        num_classes: classes C.
        ignore_index: value of a label map that is no class. What has no label counts as not difficult.
        embed_dim, grid, patch_size: filled in by CroprViT.
    """

    def __init__(
        self, num_classes: int, embed_dim: int, grid: tuple[int, int], patch_size: int, ignore_index: int = 255
    ) -> None:
        super().__init__(num_classes, embed_dim, 1, ignore_index)
        self.fc = torch.nn.Linear(embed_dim, num_classes + 1)
        torch.nn.init.trunc_normal_(self.fc.weight, std=0.02)
        torch.nn.init.zeros_(self.fc.bias)
        self.patch_size = patch_size

    def loss(self, prediction: Any, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        """Cross-entropy of the tokens' classes, mean over what is labelled, plus that of the attention.

        Args:
            prediction: a :class:`TokenPrediction`.
            data_samples, grid: see :meth:`BaseAuxHead.loss`.
        """
        if not isinstance(prediction, TokenPrediction):
            raise TypeError("TokenClassAuxHead reads single tokens; set pruning.pruner.type='DifficultyPruner'")
        where = (prediction.logits.device, grid, self.patch_size)
        targets = for_batch(patch_classes, data_samples, *where, self.num_classes, self.ignore_index)
        shares = take_rows(targets, prediction.index)
        difficulty = -(shares * prediction.logits.float().log_softmax(dim=-1)).sum(dim=-1)
        attention = prediction.scores.float().log_softmax(dim=1)
        total = difficulty.detach().sum(dim=1, keepdim=True)
        wanted = difficulty.detach() / total.clamp(min=torch.finfo(total.dtype).tiny)
        followed = -(wanted * attention).sum() / (total > 0).sum().clamp(min=1)
        return difficulty.sum() / shares.sum().clamp(min=1) + followed


@MODELS.register_module()
class DifficultyPruner(CroprPruner):
    """One-query Cropr scorer that keeps the tokens which a linear classifier does not get right yet.

    At inference it is a :class:`CroprPruner`: one vector, ``a_m = q · x_m``. In training its auxiliary head sees each
    token by itself in place of one aggregate per query, so there is no aggregation and no MLP, and learning to score
    costs a small share of a block.

    Args:
        num_classes: classes of the label maps or boxes.
        ignore_index: value of a label map that is no class.
        reverse, deploy, embed_dim, grid, patch_size: see :class:`CroprPruner`.
    """

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        patch_size: int,
        num_classes: int,
        ignore_index: int = 255,
        reverse: bool = False,
        deploy: bool = False,
    ) -> None:
        head = dict(type='TokenClassAuxHead', num_classes=num_classes, ignore_index=ignore_index)
        super().__init__(embed_dim, grid, patch_size, head, mlp=False, reverse=reverse, deploy=deploy)

    def predict(self, tokens: Tensor, index: Tensor) -> Any:
        # Of all tokens, and the prefix is dropped from what comes out: a slice of them would be copied, and kept.
        x, prefix = tokens.detach(), tokens.shape[1] - index.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            scores = x.float() @ self.queries[0].float()
        return TokenPrediction(scores[:, prefix:], self.aux_head(x)[:, prefix:], index)
