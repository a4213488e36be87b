"""What the pruners saw in a training step, and the losses that they learn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ....tokens import Tokens
from ....utils.checks import check_number
from ..base import BaseReducer
from .targets import Batch


class _Seen(NamedTuple):
    reducer: BaseReducer
    tokens: Tokens
    grid: tuple[int, int]


class AuxCollector:
    """Auxiliary predictions and losses of all pruners.

    What a pruner sees is kept in the forward pass; predictions are made when the losses are asked for.

    Args:
        share: of the pruners that learn in each step, above 0 and at most 1. They are drawn at random; their losses
            count 1 / share, so that the expected gradient of each is that of learning in every step.
        recompute: compute predictions and losses anew in the backward pass instead of storing what is inside them:
            less memory, more time, the same gradients.

    Raises:
        ValueError: ``share`` out of range.
    """

    def __init__(self, share: float = 1.0, recompute: bool = False) -> None:
        self.share = float(check_number('pruning.aux_share', share, above=0, most=1))
        self.recompute = bool(recompute)
        self._learning: dict[str, BaseReducer] = {}
        self._idle: list[BaseReducer] = []
        self._seen: dict[str, _Seen] = {}

    @property
    def pending(self) -> bool:
        """Whether something was seen that no loss has been computed of."""
        return bool(self._seen)

    def forget(self) -> None:
        """Drop what was seen."""
        self._seen, self._idle = {}, []

    def start(self, reducers: Iterable[tuple[str, BaseReducer]]) -> None:
        """Forget what was seen, and draw which pruners learn in the step that begins.

        Args:
            reducers: of all blocks, by block, in their order.
        """
        self.forget()
        able = [(block, reducer) for block, reducer in reducers if _can_learn(reducer)]
        drawn = able
        if self.share < 1 and able:
            rows = torch.randperm(len(able))[: max(round(self.share * len(able)), 1)].tolist()
            drawn = [able[i] for i in rows]
        self._learning = dict(drawn)
        self._idle = [reducer for block, reducer in able if block not in self._learning]

    def collect(self, block: int, tokens: Tokens, grid: tuple[int, int]) -> None:
        """Keep what the pruner after ``block`` sees, if it learns in this step."""
        reducer = self._learning.get(str(block))
        if reducer is not None:
            self._seen[str(block)] = _Seen(reducer, tokens, grid)

    def losses(self, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of what was seen, which is then forgotten.

        Returns:
            ``'loss_aux'``, their sum, and ``'aux.{block}'``, the detached value of each. Empty where there is nothing
            to train.
        """
        seen, idle = self._seen, self._idle
        self.forget()
        values: dict[str, Tensor] = {}
        batch = Batch(data_samples) if seen else data_samples
        for block in list(seen):  # nothing but what its gradient needs outlives its loss
            values[block] = self._loss(*seen.pop(block), batch)
        if not values:
            return {}
        total = torch.stack(list(values.values())).sum() * ((len(values) + len(idle)) / len(values))
        for reducer in idle:  # DDP expects a gradient for every parameter
            total = total + sum(0 * p.sum() for p in reducer.parameters() if p.requires_grad)
        return {'loss_aux': total, **{f'aux.{block}': value.detach() for block, value in values.items()}}

    def _loss(self, reducer: BaseReducer, tokens: Tokens, grid: tuple[int, int], data_samples: Sequence[Any]) -> Tensor:
        def compute(x: Tensor) -> Tensor:
            return reducer.aux_loss(reducer.predict(tokens._replace(x=x)), data_samples, grid)

        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, tokens.x, use_reentrant=False)
        return compute(tokens.x)


def _can_learn(reducer: BaseReducer) -> bool:
    return reducer.learns and any(parameter.requires_grad for parameter in reducer.parameters())
