"""Selectors that learn nothing: what a learnt one is measured against at the same budget (arXiv 2412.00965)."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor

from .base import BasePruner


@MODELS.register_module()
class RandomPruner(BasePruner):
    """Random selection. Draws from torch's global generator."""

    def score(
        self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int], class_attention: Tensor | None = None
    ) -> Tensor:
        return torch.rand(index.shape, device=index.device)


@MODELS.register_module()
class VariancePruner(BasePruner):
    """Keeps the tokens whose channels vary most: the variance over the D channels of each token."""

    def score(
        self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int], class_attention: Tensor | None = None
    ) -> Tensor:
        with torch.autocast(patch_tokens.device.type, enabled=False):
            return patch_tokens.float().var(dim=-1)


@MODELS.register_module()
class AttentionPruner(BasePruner):
    """Keeps the tokens that the class token attends to most in the block in front, mean over the heads.

    Top-k of the class attention, as in EViT (arXiv 2202.07800) without its fused token. The model must have a class
    token. Only that one row of the attention is computed beside the fused kernel.
    """

    reads_class_attention = True

    def score(
        self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int], class_attention: Tensor | None = None
    ) -> Tensor:
        if class_attention is None:
            raise ValueError('AttentionPruner needs the attention of a class token; the model has none')
        return class_attention
