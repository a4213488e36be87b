"""A pruner whose attention learns where a shallow classifier still fails."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS

from ...tokens import Removed, Tokens
from .base import Context
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
        classify: keep the classifier at inference and hand on its logits of pruned tokens; ``pruning.fusion='logits'``
            sets it.
        reverse, deploy, embed_dim, grid, patch_size: see :class:`CroprPruner`.
    """

    classifies = True

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        patch_size: int,
        num_classes: int,
        ignore_index: int = 255,
        reverse: bool = False,
        classify: bool = False,
        deploy: bool = False,
    ) -> None:
        head = dict(type='TokenClassAuxHead', num_classes=num_classes, ignore_index=ignore_index)
        # One query without an MLP is its own folded form, so a classifier that stays is all that there is to build.
        super().__init__(embed_dim, grid, patch_size, head, mlp=False, reverse=reverse, deploy=deploy and not classify)
        self.classify = classify
        self.learns = not deploy

    def forward(self, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        kept, removed = super().forward(tokens, count, context)
        return kept, [self._classified(part) for part in removed] if self.classify else removed

    @torch.no_grad()
    def _classified(self, pruned: Removed) -> Removed:
        """With the logits (B, R, C) of the classes; background, which a label map has not, is left out."""
        return pruned._replace(prediction=self.aux_head(pruned.x)[..., :-1])

    def switch_to_deploy(self) -> None:
        if not self.classify:
            super().switch_to_deploy()
        self.learns = False

    def predict(self, tokens: Tokens) -> TokenPrediction:
        # Of all tokens, and the prefix is dropped from what comes out: a slice of them would be copied, and kept.
        x, prefix = tokens.x.detach(), tokens.num_prefix
        with torch.autocast(x.device.type, enabled=False):
            scores = x.float() @ self.queries[0].float()
        return TokenPrediction(scores[:, prefix:], self.aux_head(x)[:, prefix:], tokens.position)
