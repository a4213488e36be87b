"""The learned scorer: cross-attention of task queries to the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...tokens import Tokens
from ...utils.checks import check_flag, is_integer
from ...utils.compat import autocast_dtype
from ..layers import Mlp, init_vit_weights
from .base import BasePruner, Context

EPS = 1e-5  # of every LayerNorm, as published


@MODELS.register_module()
class CroprPruner(BasePruner):
    """Learned cross-attention scorer (Cropr, arXiv 2412.00965, section 3.2).

    The score of token m is the sum of its raw attention logits over all queries, ``a_m = Σ_n Q_n · x_m``. So the
    queries fold into one vector and scoring costs O(M) whatever their number. In training, each query also
    aggregates the tokens for an auxiliary prediction, through which the queries learn:
    ``Z = softmax(Q Xᵀ / √D) X;  Z + MLP(LayerNorm(Z)) → auxiliary head``.
    X is detached throughout: the auxiliary loss never reaches the backbone.

    The defaults are the published module; the options are those of the paper's ablation. All of them fold:
    heads do not change the sum of the logits, projections and the norm's gain go into the vector, and what adds the
    same to every token is left out.

    Args:
        aux_head: config of the auxiliary head; it says how many queries there are.
        num_heads: heads of the cross-attention; must divide D.
        qkv_proj: project queries, keys and values, and the joined heads, by linear layers.
        pre_norm: LayerNorm on the tokens before the attention. At inference a token is then centred and scaled.
        mlp: whether an MLP (ratio 4, residual) follows the aggregation.
        stop_gradient: keep the auxiliary loss out of the backbone. The scores pass no gradient either way.
        reverse: keep the tokens that score lowest ("non-salient", a sanity check that must do worse than random).
        sample: draw the tokens to keep, without replacement, with probabilities ``softmax_m(a_m)`` (Gumbel-top-k, arXiv
            1903.06059) in place of taking the best, in evaluation too.
        deploy: build the folded scorer alone. It loads folded weights, and folds trained ones as it loads them.
        embed_dim, grid, patch_size: see :class:`BasePruner`.

    Raises:
        ValueError: no auxiliary head, or heads that do not divide D.
    """

    queries: nn.Parameter

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        patch_size: int,
        aux_head: dict[str, Any],
        num_heads: int = 1,
        qkv_proj: bool = False,
        pre_norm: bool = False,
        mlp: bool = True,
        stop_gradient: bool = True,
        reverse: bool = False,
        sample: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__(embed_dim, grid, patch_size, deploy)
        if not isinstance(aux_head, dict) or 'type' not in aux_head:
            raise ValueError(
                f'pruning.pruner.aux_head={aux_head!r}; a config with a type is expected, such as '
                "dict(type='MultiLabelAuxHead', num_classes=80)"
            )
        if not is_integer(num_heads) or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f'pruning.pruner.num_heads={num_heads!r}; a divisor of {embed_dim} channels is expected')
        flags = dict(qkv_proj=qkv_proj, pre_norm=pre_norm, mlp=mlp, stop_gradient=stop_gradient)
        for key, value in dict(**flags, reverse=reverse, sample=sample, deploy=deploy).items():
            check_flag(f'pruning.pruner.{key}', value)
        self.num_heads, self.pre_norm = num_heads, pre_norm
        self.stop_gradient, self.reverse, self.sample = stop_gradient, reverse, sample
        if deploy:
            self._keep_vector(torch.zeros(1, embed_dim))
            return
        self.learns = True
        self.aux_head: Any = MODELS.build(dict(embed_dim=embed_dim, grid=grid, patch_size=patch_size, **aux_head))
        self.queries = nn.Parameter(torch.empty(self.aux_head.num_queries, embed_dim))
        nn.init.trunc_normal_(self.queries, std=embed_dim**-0.5)
        self.input_norm = nn.LayerNorm(embed_dim, eps=EPS) if pre_norm else None
        self.q_proj, self.k_proj, self.v_proj, self.proj = (
            nn.Linear(embed_dim, embed_dim) if qkv_proj else None for _ in range(4)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=EPS) if mlp else None
        self.mlp = Mlp(embed_dim, 4 * embed_dim) if mlp else None
        for part in (self.q_proj, self.k_proj, self.v_proj, self.proj, self.mlp):
            if part is not None:
                part.apply(init_vit_weights)

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        patches = tokens.patches
        with torch.no_grad(), torch.autocast(patches.device.type, enabled=False):
            vector = _fold(dict(self._scoring_weights()))
            if self.pre_norm:
                patches = F.layer_norm(patches.float(), (self.embed_dim,), eps=EPS)
            scores = _dot(vector, patches)
            scores = -scores if self.reverse else scores
            return scores - torch.empty_like(scores).exponential_().log() if self.sample else scores

    def predict(self, tokens: Tokens) -> Any:
        x = tokens.x.detach() if self.stop_gradient else tokens.x
        x = x if self.input_norm is None else self.input_norm(x)
        dtype = autocast_dtype(x.device.type)
        if dtype is not None:
            x = x.to(dtype)  # once, not once for keys and once for values
        q = self.queries if self.q_proj is None else self.q_proj(self.queries)
        k, v = x if self.k_proj is None else self.k_proj(x), x if self.v_proj is None else self.v_proj(x)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for t in (q.to(k.dtype), k, v))
        z = F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1, -1), k, v).transpose(1, 2).flatten(2)
        z = z if self.proj is None else self.proj(z)
        return self.aux_head(z if self.mlp is None or self.norm is None else z + self.mlp(self.norm(z)))

    def aux_loss(self, prediction: Any, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        return self.aux_head.loss(prediction, data_samples, grid)

    # --- deployment -------------------------------------------------------------------------------------------

    def _scoring_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield 'queries', self.queries
        for name in ('q_proj', 'k_proj', 'input_norm'):
            layer = getattr(self, name)
            if layer is not None:
                yield f'{name}.weight', layer.weight
                yield f'{name}.bias', layer.bias

    def _keep_vector(self, vector: Tensor) -> None:
        self.queries = nn.Parameter(vector)
        self.input_norm = self.q_proj = self.k_proj = self.v_proj = self.proj = None
        self.norm = self.mlp = self.aux_head = None
        self.learns = False

    def switch_to_deploy(self) -> None:
        vector = _fold({name: weight.detach() for name, weight in self._scoring_weights()})
        self._keep_vector(vector.to(self.queries.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        folded = list(own) == ['queries']
        if self.aux_head is None and own and not folded:
            for key in own:
                del state_dict[prefix + key]
            state_dict[f'{prefix}queries'] = _fold(own)
        if self.aux_head is not None and folded:
            raise ValueError(
                f'{prefix}queries: the checkpoint holds folded scorers, for inference alone; set '
                'model.backbone.pruning.deploy=True, or take the checkpoint that training wrote'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _dot(vector: Tensor, x: Tensor) -> Tensor:
    """Dot product of a vector (1, D) with tokens (B, N, D): (B, N) float32.

    Summed in float32: half precision would make ties of near neighbours, and may overflow. On CUDA
    ``torch.set_float32_matmul_precision`` rounds float32 factors here as in every other product (TF32).
    """
    # A row times a matrix, which reads the tokens after the prefix in place: matmul would copy them first, and
    # a matrix times a column takes 15 times as long on a CPU.
    if vector.dtype == x.dtype != torch.float32 and sums_in_float32(x.device, x.dtype):
        row, matrix = vector.expand(x.shape[0], 1, -1), x.transpose(1, 2)
        return torch.bmm(row, matrix, out_dtype=torch.float32).squeeze(1)  # since PyTorch 2.8
    return torch.bmm(vector.float().expand(x.shape[0], 1, -1), x.float().transpose(1, 2)).squeeze(1)


def sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a matrix product of half precision can be had in float32 there (PyTorch 2.8 or newer, on CUDA).

    Decided without a trial, which would fail under a mode that counts operations, whatever the device can do.
    """
    if device.type != 'cuda' or torch.version.hip is not None or 'dtype' not in torch.ops.aten.bmm.overloads():
        return False
    return dtype == torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)


def _fold(weights: Mapping[str, Tensor]) -> Tensor:
    """The vector (1, D) whose dot product with a token is its score, up to what all tokens share.

    In float32, or where it is one query and nothing else, as it is.
    """
    if len(weights) == 1 and len(weights['queries']) == 1:
        return weights['queries']
    queries = weights['queries'].float()
    if 'q_proj.weight' in weights:
        queries = F.linear(queries, weights['q_proj.weight'].float(), weights['q_proj.bias'].float())
    vector = queries.sum(dim=0, keepdim=True)
    if 'k_proj.weight' in weights:
        vector = vector @ weights['k_proj.weight'].float()
    if 'input_norm.weight' in weights:
        vector = vector * weights['input_norm.weight'].float()
    return vector
