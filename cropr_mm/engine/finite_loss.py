"""A training whose loss is no number any more ends, instead of going on for days."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


class FiniteLoss(Hook):
    """Ends a training whose loss is NaN or infinite, before a checkpoint of it is written.

    As mmdetection's ``CheckInvalidLossHook``, for all libraries. Looked at rarely, as a look waits for the device: at
    every ``interval``-th iteration and the last one; and since in mixed precision a single step may overflow, which its
    optimizer wrapper leaves out, only the next one decides there.

    Raises:
        ValueError: names the iteration, the losses that are no numbers, and the learning rate.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._suspicious = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        last = runner.iter + 1 >= runner.max_iters
        if not (last or self._suspicious or self.every_n_train_iters(runner, self.interval)):
            return
        wrong = {name: value for name, value in _values(outputs or {}) if not math.isfinite(value)}
        tolerant = getattr(runner.optim_wrapper, 'loss_scaler', None) is not None and not self._suspicious and not last
        self._suspicious = bool(wrong)
        if wrong and not tolerant:
            listed = ', '.join(f'{name}={value}' for name, value in wrong.items())
            rates = {f'{rate:.3g}' for values in runner.optim_wrapper.get_lr().values() for rate in values}
            raise ValueError(
                f'iteration {runner.iter + 1}: {listed}; the training has diverged. Lower optim_wrapper.optimizer.lr '
                f'(now {", ".join(sorted(rates)[:3])}), or set optim_wrapper.clip_grad; look at the labels and images, '
                'too'
            )


def _values(outputs: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (name, float(value.detach() if isinstance(value, torch.Tensor) else value))
        for name, value in outputs.items()
        if isinstance(value, float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    ]
