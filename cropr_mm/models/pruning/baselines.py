"""Pruners without parameters: what a learned one is measured against at the same budget (arXiv 2412.00965)."""

from __future__ import annotations

import math

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...tokens import Tokens
from .base import BasePruner, Context


@MODELS.register_module()
class RandomPruner(BasePruner):
    """Random scores, from torch's global generator."""

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return torch.rand(tokens.position.shape, device=tokens.x.device)


@MODELS.register_module()
class VariancePruner(BasePruner):
    """Keeps the tokens whose channels vary most: the variance over the D channels of each token."""

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        with torch.autocast(tokens.x.device.type, enabled=False):
            return tokens.patches.float().var(dim=-1)


@MODELS.register_module()
class AttentionPruner(BasePruner):
    """Keeps the tokens that the [CLS] token attends to most in the block before, mean over the heads.

    Top-k of the class attention, as in EViT (arXiv 2202.07800), whose fused token ``pruning.absorb='fused_token'``
    adds. The model must have a [CLS] token. Only that one row of the attention is computed beside the fused kernel.
    """

    observes = needs_class_token = True

    def observe(self, q: Tensor, k: Tensor, num_prefix: int) -> Tensor:
        return class_attention(q, k, num_prefix)

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return context.observed

    def weights(self, scores: Tensor) -> Tensor:
        return scores


def class_attention(q: Tensor, k: Tensor, num_prefix: int) -> Tensor:
    """Attention weights that the [CLS] token, the first one, gives the patch tokens, mean over the heads.

    Args:
        q, k: (B, P + M, heads, head_dim).
        num_prefix: P.

    Returns:
        (B, M) float32. The softmax runs over all P + M tokens.
    """
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        logits = torch.einsum('bhd,bmhd->bhm', q[:, 0].float(), k.float()) / math.sqrt(q.shape[-1])
        return logits.softmax(dim=-1)[:, :, num_prefix:].mean(dim=1)
