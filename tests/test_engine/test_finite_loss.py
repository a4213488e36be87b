"""A training ends where its loss is no number any more, and a single overflow in mixed precision does not end it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from cropr_mm.engine.finite_loss import FiniteLoss


def run(losses, interval=1, scaler=False):
    """Iterations with these losses; returns how many ended well."""
    optimizer = SimpleNamespace(get_lr=lambda: dict(lr=[0.5]), **(dict(loss_scaler=object()) if scaler else {}))
    hook, runner = FiniteLoss(interval), SimpleNamespace(max_iters=len(losses) + 1, optim_wrapper=optimizer)
    for i, loss in enumerate(losses):
        runner.iter = i
        try:
            hook.after_train_iter(runner, i, outputs=dict(loss=torch.tensor(loss, requires_grad=True), note='text'))
        except ValueError:
            return i
    return len(losses)


@pytest.mark.parametrize('wrong', [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_training(wrong):
    assert run([1.0, wrong, 1.0]) == 1


def test_a_single_overflow_in_mixed_precision_does_not():
    assert run([1.0, math.inf, 1.0, math.inf, 1.0], scaler=True) == 5
    assert run([1.0, math.inf, math.inf, 1.0], scaler=True) == 2


def test_it_looks_rarely():
    assert run([1.0, math.nan, 1.0, 1.0], interval=3) == 4
    assert run([1.0, math.nan, math.nan, 1.0], interval=3) == 2
