"""Scorers: how much does each token matter? One instance sits behind each pruned block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import Mlp


class BasePruner(nn.Module):
    """Gives each patch token a score; the selection itself is not its business.

    Args:
        embed_dim: channels D of a token.
        grid: (H, W), the patch grid at the training size.
        patch_size: pixels per patch side.
        deploy: build only what inference needs.

    CroprViT fills these four in; a config names only what a pruner adds.
    """

    def __init__(self, embed_dim: int, grid: tuple[int, int], patch_size: int, deploy: bool = False) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.grid = grid
        self.patch_size = patch_size

    def score(self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patch tokens.

        Args:
            patch_tokens: (B, N, D).
            index: (B, N) int64, their raster positions.
            grid: (H, W), the patch grid of these images.

        Returns:
            (B, N) float32; higher stays.
        """
        raise NotImplementedError

    def predict(self, tokens: Tensor) -> Tensor | None:
        """Auxiliary prediction from all tokens (B, P + N, D), in training; None where there is nothing to train."""
        return None

    def aux_loss(self, logits: Tensor, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        """Loss (scalar) of an auxiliary prediction; see :meth:`BaseAuxHead.loss`."""
        raise NotImplementedError

    def switch_to_deploy(self) -> None:
        """Drop what only training needs; the scores stay the same."""


@MODELS.register_module()
class CroprPruner(BasePruner):
    """Learnt cross-attention scorer (Cropr, arXiv 2412.00965, section 3.2).

    The score of token m is ``a_m = Σ_n Q_n · x_m``, so the queries fold into one vector and scoring costs O(M)
    whatever their number. In training, each query also aggregates the tokens for an auxiliary prediction, through
    which the queries learn:
    ``Z = softmax(Q Xᵀ / √D) X;  Z + MLP(LayerNorm(Z)) → auxiliary head``.
    X is detached throughout: the auxiliary loss never reaches the backbone.

    Args:
        aux_head: config of the auxiliary head; it says how many queries there are.
        deploy: build the folded scorer alone, for weights that ``switch_to_deploy`` has folded.
        embed_dim, grid, patch_size: see :class:`BasePruner`.
    """

    queries: nn.Parameter
    norm: nn.LayerNorm | None
    mlp: Mlp | None
    aux_head: Any

    def __init__(
        self, embed_dim: int, grid: tuple[int, int], patch_size: int, aux_head: dict[str, Any], deploy: bool = False
    ) -> None:
        super().__init__(embed_dim, grid, patch_size, deploy)
        if not isinstance(aux_head, dict) or 'type' not in aux_head:
            raise ValueError(
                f'pruning.pruner.aux_head={aux_head!r}; a config with a type is expected, such as '
                "dict(type='MultiLabelAuxHead', num_classes=80)"
            )
        self.norm = self.mlp = self.aux_head = None
        if deploy:
            self.queries = nn.Parameter(torch.zeros(1, embed_dim))
            return
        self.aux_head = MODELS.build(dict(embed_dim=embed_dim, grid=grid, patch_size=patch_size, **aux_head))
        self.queries = nn.Parameter(torch.empty(self.aux_head.num_queries, embed_dim))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, 4 * embed_dim)
        nn.init.trunc_normal_(self.queries, std=embed_dim**-0.5)
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def score(self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int]) -> Tensor:
        # float32 also under autocast: half precision would make ties of near neighbours, and may overflow.
        with torch.no_grad(), torch.autocast(patch_tokens.device.type, enabled=False):
            folded = self.queries.float().sum(dim=0)
            # bmm reads the tokens behind the prefix in place, where matmul would copy them first.
            return torch.bmm(patch_tokens.float(), folded.expand(len(patch_tokens), -1).unsqueeze(-1)).squeeze(-1)

    def predict(self, tokens: Tensor) -> Tensor | None:
        if self.aux_head is None or self.norm is None or self.mlp is None:
            return None
        x = tokens.detach().unsqueeze(1)
        q = self.queries.to(x.dtype).expand(len(x), 1, -1, -1)
        z = F.scaled_dot_product_attention(q, x, x, scale=1 / math.sqrt(self.embed_dim)).squeeze(1)
        return self.aux_head(z + self.mlp(self.norm(z)))

    def aux_loss(self, logits: Tensor, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        return self.aux_head.loss(logits, data_samples, grid)

    def switch_to_deploy(self) -> None:
        self.queries = nn.Parameter(self.queries.detach().sum(dim=0, keepdim=True))
        self.norm = self.mlp = self.aux_head = None


@MODELS.register_module()
class RandomPruner(BasePruner):
    """Random selection: the baseline at the same budget. Draws from torch's global generator."""

    def score(self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int]) -> Tensor:
        return torch.rand(index.shape, device=index.device)
