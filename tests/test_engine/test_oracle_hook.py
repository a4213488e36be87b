"""OracleHook hands each batch's labels over once, however often a runner begins."""

from types import SimpleNamespace

import pytest
from helpers import cropr, small_vit
from torch import nn

from cropr_mm import OracleHook


def model(pruner):
    holder = nn.Module()
    holder.backbone = small_vit(pruning=dict(pruner=pruner, rate=8))
    return holder


def test_a_test_after_a_training_attaches_nothing_twice():
    hook, runner = OracleHook(), SimpleNamespace(model=model(dict(type='OraclePruner')))
    hook.before_run(runner)  # mmengine calls it for the training, and again for the test
    (first,) = runner.model._forward_pre_hooks
    hook.before_run(runner)
    assert len(runner.model._forward_pre_hooks) == 1 and first not in runner.model._forward_pre_hooks


def test_a_model_without_an_oracle_is_named():
    with pytest.raises(
        ValueError, match=r"OracleHook: the model has no OraclePruner; set pruning.pruner.type to 'Orac"
    ):
        OracleHook().attach(model(cropr()))
