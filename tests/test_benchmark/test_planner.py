"""Schedules for a speed: costs against sums by hand, plans against a search of every plan."""

import numpy as np
import pytest
import torch
from helpers import cropr, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cropr_mm.benchmark.measure import Setting
from cropr_mm.benchmark.planner import (
    LEAST,
    SHARES,
    Costs,
    Shape,
    best_plan,
    fastest_plan,
    measure_costs,
    measured_schedules,
    plan_at,
    plans_for,
    shape_of,
    solve_costs,
    stages_of,
    time_schedules,
)

SHAPE = Shape(depth=12, grid=(16, 16), prefix=1)


def by_hand(shape, keep, block, pruner, rest=3.0):
    """Seconds of a plan, block by block: ``block(share)`` of each, ``pruner(share)`` of each pruner."""
    schedule = shape.schedule(keep) if keep else None
    tokens, full = shape.tokens(schedule), shape.patches + shape.prefix
    seconds = rest + sum(block(count / full) for count in tokens)
    return seconds + sum(pruner(tokens[after] / full) for after in (schedule.blocks if schedule else ()))


def bent(share):
    """Grows with the tokens, in a bend at one of the measured shares."""
    return 0.2 + share + max(0.0, share - 0.5)


def costly(share):
    return 0.3 + 0.1 * share


@pytest.mark.parametrize(
    'shape', [SHAPE, Shape(24, (32, 32), 0), Shape(8, (12, 12), 5, round_to=1, fusion=None)], ids=str
)
def test_costs_predict_what_they_were_not_measured_at(shape):
    schedules = measured_schedules(shape)
    plans = [None, *(dict(zip(schedule.blocks, schedule.keep)) for schedule in schedules)]
    costs = solve_costs(shape, schedules, [by_hand(shape, keep, bent, costly) for keep in plans])
    assert costs.dense == pytest.approx(by_hand(shape, None, bent, costly), rel=1e-4) == costs.seconds(None)
    for keep in ({1: 0.5}, {0: 0.9, 3: 0.4}, {2: 0.7, 4: 0.5, 5: 0.12}):
        assert costs.seconds(shape.schedule(keep)) == pytest.approx(by_hand(shape, keep, bent, costly), rel=1e-4)


def costs_of(block, pruner, shape=SHAPE):
    saved = tuple(block(1.0) - block(share) for share in SHARES)
    return Costs(shape, by_hand(shape, None, block, pruner), saved, (pruner(0.0), pruner(1.0) - pruner(0.0)))


@given(per_token=st.floats(0.2, 3), quadratic=st.floats(0, 2), pruner=st.floats(0, 1), times=st.floats(1.02, 2.5))
@settings(max_examples=20, deadline=None)
def test_plans_are_those_of_a_search_of_all(per_token, quadratic, pruner, times):
    costs = costs_of(lambda share: 0.2 + per_token * share + quadratic * share**2, lambda share: pruner)
    target = costs.dense / times
    plans = plans_for(costs, target)
    most = {}
    for stages, blocks in stages_of(SHAPE).items():
        finals = np.arange(np.ceil(LEAST * SHAPE.patches), SHAPE.patches) / SHAPE.patches
        fast = [p for p in (plan_at(costs, blocks, final) for final in finals) if p.seconds <= target]
        if fast:
            most[stages] = max(plan.kept for plan in fast)
    assert {stages: plan.kept for stages, plan in plans.items()} == most
    if plans:
        assert 0.95 * max(most.values()) <= best_plan(plans).kept <= max(most.values())
    assert (fastest_plan(costs).seconds <= target) == bool(plans)


def test_stages_are_evenly_spaced_and_keep_the_same_share_of_what_is_left():
    assert stages_of(Shape(24, (32, 32)))[3] == [5, 11, 17] and stages_of(SHAPE)[10] == list(range(10))
    plan = plan_at(costs_of(bent, costly), [2, 5, 8], 0.216)
    assert plan.keep == {2: 0.6, 5: 0.36, 8: 0.216}
    assert plan.tokens == [257] * 3 + [152] * 3 + [96] * 3 + [56] * 2 + [257] and plan.kept == 56


def test_dear_pruners_make_few_stages_and_in_the_end_none():
    def plans(pruner, times=1.4):
        costs = costs_of(bent, lambda share: pruner)
        return plans_for(costs, costs.dense / times)

    free, dear = plans(0.0), plans(0.7)
    assert set(free) == set(stages_of(SHAPE)) and len(best_plan(free).keep) > 1
    assert max(dear) < max(free) and len(best_plan(dear).keep) < len(best_plan(free).keep)
    assert not plans(20.0)


def test_a_model_is_timed_and_left_as_it_was():
    pruning = dict(pruner=cropr(), target_ratio=0.5, round_to=1)
    dense, pruned = small_vit().eval(), small_vit(pruning=pruning).eval()
    own, batch = pruned.schedule, dict(inputs=torch.randn(2, 3, 24, 24), data_samples=[])
    costs = measure_costs(dense, pruned, batch, Setting(rounds=1))
    shape = shape_of(pruned, batch['inputs'])
    assert pruned.schedule is own and costs.shape == shape and costs.dense > 0 and len(costs.saved) == len(SHARES)
    seen = []
    pruned.register_forward_pre_hook(lambda model, _: seen.append(model.schedule))
    schedules = [shape.schedule({0: 0.5}), shape.schedule({1: 0.5})]
    assert len(time_schedules(dense, pruned, schedules, batch, Setting(rounds=1))) == 3
    assert set(seen) == set(schedules) and pruned.schedule is own


def test_a_dense_model_cannot_be_planned():
    with pytest.raises(ValueError, match='pruning is None'):
        shape_of(small_vit(), torch.zeros(1, 3, 24, 24))


@given(noise=st.lists(st.floats(0.8, 1.25), min_size=10, max_size=10))
@settings(max_examples=30, deadline=None)
def test_noise_makes_no_cost_absurd(noise):
    schedules = measured_schedules(SHAPE)
    plans = [None, *(dict(zip(schedule.blocks, schedule.keep)) for schedule in schedules)]
    costs = solve_costs(SHAPE, schedules, [f * by_hand(SHAPE, keep, bent, costly) for f, keep in zip(noise, plans)])
    assert costs.dense > 0 and min(costs.pruner) >= 0 and min(costs.saved) >= 0
    assert sorted(costs.saved, reverse=True) == list(costs.saved)
    explained = [costs.seconds(schedule) for schedule in (None, *schedules)]
    measured = [f * by_hand(SHAPE, keep, bent, costly) for f, keep in zip(noise, plans)]
    assert costs.misfit == pytest.approx(max(abs(e / m - 1) for e, m in zip(explained, measured)))
