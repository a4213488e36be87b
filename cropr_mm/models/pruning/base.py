"""What every way to reduce tokens has in common: pruners, and whatever else removes tokens after a block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...tokens import Removed, Tokens, split
from ...utils.compat import makes_graph


class Context(NamedTuple):
    """What a reducer may read besides the current tokens.

    Attributes:
        grid: (H, W), the patch grid of these images.
        padding: (B, H * W) bool, the positions that hold only padding, or None.
        observed: what :meth:`BaseReducer.observe` returned in the block before, or None.
        in_order: whether the tokens that continue must lie in the order in which they were, as windows need it.
    """

    grid: tuple[int, int]
    padding: Tensor | None = None
    observed: Any = None
    in_order: bool = True


class BaseReducer(nn.Module):
    """Removes tokens after a block. One instance after each block of the schedule.

    Args:
        embed_dim: channels D of a token.
        grid: (H, W), the patch grid at the training size.
        patch_size: pixels per patch side.
        deploy: build only what inference needs.

    CroprViT fills these four in; a config names only what a reducer adds.

    Attributes:
        observes: whether :meth:`observe` is called in the attention of the block before.
        needs_class_token: whether the model must have a [CLS] token.
        learns: whether :meth:`predict` gives something to train.
        fits_windows: whether the model may have windowed attention.
        classifies: whether it takes ``classify=True``, with which what it removes has its logits in
            :attr:`~cropr_mm.tokens.Removed.prediction` (``pruning.fusion='logits'``).
    """

    observes: bool = False
    needs_class_token: bool = False
    learns: bool = False
    fits_windows: bool = True
    classifies: bool = False

    def __init__(self, embed_dim: int, grid: tuple[int, int], patch_size: int, deploy: bool = False) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.grid = grid
        self.patch_size = patch_size

    def forward(self, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        """Remove ``count`` patch tokens, 0 < count < M.

        Args:
            tokens: the current tokens, M of them patch tokens.
            count: the same for every image, as shapes must not depend on the data.
            context: what else may be read.

        Returns:
            The current tokens from here on, M - count of them patch tokens, the prefix first, and all in the order
            in which they were where ``context.in_order`` asks for it; and all that is needed to bring the ``count``
            other positions back, in one part or several.
        """
        raise NotImplementedError

    def observe(self, q: Tensor, k: Tensor, num_prefix: int) -> Any:
        """Look at the attention of the block before, if ``observes``.

        Args:
            q, k: (B, P + M, heads, head_dim), queries and keys with RoPE, before the softmax.
            num_prefix: P.

        Returns:
            ``context.observed``.
        """
        raise NotImplementedError

    def predict(self, tokens: Tokens) -> Any:
        """Auxiliary prediction from the current tokens in training, of a reducer that learns."""
        raise NotImplementedError

    def aux_loss(self, prediction: Any, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        """Loss (scalar) of what :meth:`predict` returned; see :meth:`BaseAuxHead.loss`."""
        raise NotImplementedError

    def switch_to_deploy(self) -> None:
        """Drop what only training needs; the output stays the same."""


class BasePruner(BaseReducer):
    """Scores the patch tokens; those with the lowest scores are pruned. A pruner of one's own defines :meth:`score`.

    Attributes:
        fused: whether one Triton kernel selects and moves the tokens at inference on CUDA, without windows. None: where
            Triton is installed.
        absorb: where pruned tokens go (``pruning.absorb``, :mod:`~cropr_mm.models.pruning.absorb`). None: aside,
            unchanged, until they are brought back.
    """

    fused: bool | None = None
    absorb: Callable[..., tuple[Tokens, Removed]] | None = None

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        """Score the patch tokens.

        Args:
            tokens: detached; ``tokens.patches`` (B, M, D) and ``tokens.position`` (B, M).
            context: what else may be read.

        Returns:
            (B, M) float32; higher is kept. Padding is pruned first, whatever its scores.
        """
        raise NotImplementedError

    def weights(self, scores: Tensor) -> Tensor:
        """Weights (B, M) of tokens in a mean, from their scores: as of an attention whose logits the scores are."""
        return scores.softmax(dim=1)

    def forward(self, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        scores = self.score(tokens._replace(x=tokens.x.detach()), context)
        if not isinstance(scores, Tensor) or scores.shape != tokens.position.shape:
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f'{type(self).__name__}.score returned {found}; one score per patch token, (B, M) = '
                f'{tuple(tokens.position.shape)}, is expected'
            )
        scores = scores.float()
        if (
            self.absorb is None
            and self.fused is not False
            and _fits_kernel(tokens, context)
            and (kernel := _kernel(bool(self.fused)))
        ):
            kept, pruned = kernel(tokens, scores, count, context.padding)
            return kept, [pruned]
        if context.padding is not None:
            scores = scores.masked_fill(context.padding.gather(1, tokens.position), -torch.inf)
        if self.absorb is not None:
            kept, pruned = self.absorb(tokens, scores, count, context, self.weights)
        else:
            kept, pruned = split(tokens, scores, count, context.in_order)
        return kept, [pruned]


@functools.lru_cache(maxsize=None)
def _kernel(needed: bool) -> Any:
    try:
        from .fused_split import fused_split
    except ImportError as error:
        if not needed:
            return None
        raise ModuleNotFoundError(f'pruning.fused=True needs Triton ({error}): pip install triton') from error
    return fused_split


def _fits_kernel(tokens: Tokens, context: Context) -> bool:
    inference = tokens.x.is_cuda and not torch.is_grad_enabled() and not makes_graph()
    return inference and not context.in_order and tokens.size is None and torch.version.hip is None


def check_reduction(name: str, before: Tokens, count: int, after: Tokens, removed: Sequence[Removed]) -> None:
    """Raise ValueError where a reducer lost tokens, or does not say how a position comes back."""
    gone = sum(part.position.shape[1] for part in removed)
    left = before.position.shape[1] - after.position.shape[1]
    if gone != count or left != count:
        raise ValueError(
            f'{name}.forward was to remove {count} patch tokens; it removed {left} and tells of {gone} how they come '
            'back (the same numbers are expected)'
        )
    if any(part.x is None and part.owner is None for part in removed):
        raise ValueError(f'{name}.forward: Removed has neither x nor owner, so nothing could come back; set one')
    for part in removed:
        shape = tuple(part.position.shape)
        owner, weight = (None if t is None else tuple(t.shape) for t in (part.owner, part.weight))
        if owner != (weight or (owner and shape)) or (weight and weight[:2] != shape):
            raise ValueError(
                f'{name}.forward: Removed has owner {owner} and weight {weight} for position {shape}; owner (B, R) '
                'alone, or both (B, R, k), are expected'
            )
