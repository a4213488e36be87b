"""A pruner whose attention learns where a shallow classifier still fails."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS

from ...tokens import Tokens
from .cropr import CroprPruner
from .supervision.heads import TokenPrediction


@MODELS.register_module()
class DifficultyPruner(CroprPruner):
    """One-query Cropr pruner that keeps the tokens which a linear classifier does not get right yet.

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

    def predict(self, tokens: Tokens) -> TokenPrediction:
        # Of all tokens, and the prefix is dropped from what comes out: a slice of them would be copied, and kept.
        x, prefix = tokens.x.detach(), tokens.num_prefix
        with torch.autocast(x.device.type, enabled=False):
            scores = x.float() @ self.queries[0].float()
        return TokenPrediction(scores[:, prefix:], self.aux_head(x)[:, prefix:], tokens.position)
