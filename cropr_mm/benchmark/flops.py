"""Count FLOPs and tokens per block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..models import CroprViT

with contextlib.suppress(ImportError):  # Before the first count: once imported, PyTorch counts what it computes.
    import torch.nn.attention.varlen  # since PyTorch 2.10


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _batched_product(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a[0] * a[1] * a[2] * b[2]


# PyTorch's counter knows the fused attention of GPUs; that of the CPU has operators of its own. Its count of
# batched products fails where they are asked for in float32 (``out_dtype``).
_OPERATORS = {
    'bmm': _batched_product,
    '_scaled_dot_product_flash_attention_for_cpu': _attention,
    '_scaled_dot_product_flash_attention_for_cpu_backward': _attention_backward,
}


def count_flops(call: Callable[..., Any], *inputs: Any, grad: bool = False, **kwargs: Any) -> int:
    """Floating point operations of one call, attention included.

    A multiplication and an addition count as two; matrix products, convolutions and attention count, the rest
    (norms, activations, sorting) does not, as is usual.

    Args:
        call: a module, in its current mode, or a function.
        inputs, kwargs: what it is called with.
        grad: whether the call computes gradients, which count too.
    """
    operators = {getattr(torch.ops.aten, name, None): count for name, count in _OPERATORS.items()}
    counter = FlopCounterMode(display=False, custom_mapping={op: f for op, f in operators.items() if op is not None})
    with torch.set_grad_enabled(grad), counter:
        call(*inputs, **kwargs)
    return counter.get_total_flops()


def tokens_per_block(backbone: CroprViT, height: int, width: int, progress: float = 1.0) -> list[int]:
    """Tokens that each block processes, [CLS] and register tokens included.

    Args:
        backbone: dense or pruned.
        height, width: of the images, in pixels.
        progress: 0 to 1, the share of the final rate; at inference it is 1.
    """
    grid = backbone.grid_of(height, width)
    prefix = backbone.num_prefix_tokens
    if backbone.schedule is None:
        return [grid[0] * grid[1] + prefix] * backbone.depth
    return backbone.schedule.tokens_per_block(backbone.depth, grid, prefix, backbone.fusion, progress)


def pruned_ratio(backbone: CroprViT, height: int, width: int, progress: float = 1.0) -> float:
    """Share of all tokens that all pruners together prune, 0 to 1.

    For the arguments see :func:`tokens_per_block`.
    """
    grid = backbone.grid_of(height, width)
    if backbone.schedule is None:
        return 0.0
    pruned = backbone.schedule.counts(grid, backbone.num_prefix_tokens, progress)
    return sum(pruned) / (grid[0] * grid[1] + backbone.num_prefix_tokens)
