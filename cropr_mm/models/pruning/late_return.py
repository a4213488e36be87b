"""Pruned tokens that return after the last block, brought up to date by one learned cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...tokens import Removed, Tokens, restore
from ..archs import Arch
from ..layers import init_vit_weights
from ..windows import attend


class LateReturn(nn.Module):
    """Cross-attention of pruned tokens to the current ones: pre-norm, residual, no MLP.

    Costs R · M products where Last Layer Fusion computes a block of all tokens. The last layer starts at zero, so that
    tokens first return as they were pruned. The paper (arXiv 2412.00965) compares a learned cross-attention with Last
    Layer Fusion and does not say how it is built; this is ours.

    Args:
        arch: of the model.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        dim, self.num_heads = arch.embed_dim, arch.num_heads
        self.norm_pruned = nn.LayerNorm(dim, eps=arch.norm_eps)
        self.norm_current = nn.LayerNorm(dim, eps=arch.norm_eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.apply(init_vit_weights)
        nn.init.zeros_(self.proj.weight)

    def forward(self, tokens: Tokens, removed: Sequence[Removed], order: Tensor) -> Tokens:
        """Bring every position back: pruned tokens brought up to date, merged ones with the token that they share.

        For the arguments and what comes back see :func:`~cropr_mm.tokens.restore`.
        """
        values = [part.x for part in removed if part.x is not None]
        if values:
            updated = iter(self._mix(torch.cat(values, dim=1), tokens.x).split([x.shape[1] for x in values], dim=1))
            removed = [part if part.x is None else part._replace(x=next(updated)) for part in removed]
        elif self.training:  # nothing is pruned yet (start of the curriculum); DDP expects every gradient all the same
            tokens = tokens._replace(x=tokens.x + 0 * sum(parameter.sum() for parameter in self.parameters()))
        return restore(tokens, removed, order) if removed else tokens

    def _mix(self, x: Tensor, current: Tensor) -> Tensor:
        heads = (self.num_heads, -1)
        q = self.q(self.norm_pruned(x)).unflatten(-1, heads)
        k, v = self.kv(self.norm_current(current)).unflatten(-1, (2, *heads)).unbind(2)
        return x + self.proj(attend(q, k, v).flatten(2))
