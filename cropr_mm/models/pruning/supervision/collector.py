"""What the scorers learn from in a training step, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ....utils.checks import is_number
from ..base import BasePruner
from .targets import Batch


@dataclass(frozen=True)
class _Lesson:
    module: int
    pruner: BasePruner
    tokens: Tensor
    index: Tensor
    grid: tuple[int, int]


class Auxiliary:
    """Auxiliary predictions and losses of all modules.

    What a module sees is kept in the forward pass; predictions are made when the losses are asked for.

    Args:
        share: of the modules that learn in each step, above 0 and at most 1. Chance picks them; their losses count
            1 / share, so that the expected gradient of each is that of learning in every step.
        recompute: compute predictions and losses anew in the backward pass instead of storing what is inside them:
            less memory, more time, the same gradients.

    Raises:
        ValueError: ``share`` out of range.
    """

    def __init__(self, share: float = 1.0, recompute: bool = False) -> None:
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(f'pruning.aux_share={share!r}; a share above 0 and at most 1 is expected')
        self.share, self.recompute = float(share), bool(recompute)
        self._lessons: list[_Lesson] = []
        self._taught: set[int] = set()
        self._resting: list[BasePruner] = []

    def __bool__(self) -> bool:
        """Whether something was seen that no loss has been computed of."""
        return bool(self._lessons)

    def forget(self) -> None:
        """Drop what was seen."""
        self._lessons, self._resting = [], []

    def start(self, pruners: Sequence[BasePruner]) -> None:
        """Forget what was seen, and draw which modules learn in the step that begins.

        Args:
            pruners: of all modules, in their order.
        """
        able = [module for module, pruner in enumerate(pruners) if _can_learn(pruner)]
        taught = able
        if self.share < 1 and able:
            drawn = torch.randperm(len(able))[: max(round(self.share * len(able)), 1)].tolist()
            taught = [able[i] for i in drawn]
        self._lessons, self._taught = [], set(taught)
        self._resting = [pruners[module] for module in able if module not in self._taught]

    def see(self, module: int, pruner: BasePruner, tokens: Tensor, index: Tensor, grid: tuple[int, int]) -> None:
        """Keep what a module saw, if it learns in this step.

        Args:
            module: its number.
            pruner: its pruner.
            tokens: (B, P + N, D), all tokens that leave the block, prefix first.
            index: (B, N) int64, raster positions of the patch tokens.
            grid: (H, W), the patch grid of these images.
        """
        if module in self._taught:
            self._lessons.append(_Lesson(module, pruner, tokens, index, grid))

    def losses(self, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of what was seen, which is then forgotten.

        Returns:
            ``'loss_aux'``, their sum, and ``'aux.{module}'``, the detached value of each. Empty where there is nothing
            to train.
        """
        lessons, resting = self._lessons, self._resting
        self._lessons, self._resting = [], []
        values: dict[int, Tensor] = {}
        batch = Batch(data_samples) if lessons else data_samples
        while lessons:
            lesson = lessons.pop(0)  # nothing but what its gradient needs outlives its loss
            values[lesson.module] = self._loss(lesson, batch)
        if not values:
            return {}
        total = torch.stack(list(values.values())).sum() * ((len(values) + len(resting)) / len(values))
        for pruner in resting:  # DDP expects a gradient for every parameter
            total = total + sum(0 * p.sum() for p in pruner.parameters() if p.requires_grad)
        return {'loss_aux': total, **{f'aux.{module}': value.detach() for module, value in values.items()}}

    def _loss(self, lesson: _Lesson, data_samples: Sequence[Any]) -> Tensor:
        def compute(tokens: Tensor) -> Tensor:
            prediction = lesson.pruner.predict(tokens, lesson.index)
            return lesson.pruner.aux_loss(prediction, data_samples, lesson.grid)

        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, lesson.tokens, use_reentrant=False)
        return compute(lesson.tokens)


def _can_learn(pruner: BasePruner) -> bool:
    return pruner.learns and any(parameter.requires_grad for parameter in pruner.parameters())
