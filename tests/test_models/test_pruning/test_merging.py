"""What every reducer that merges has in common: all positions come back, dense checkpoints run and train."""

import pytest
import torch
from helpers import SMALL, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cropr_mm import RandomPruner

MERGING = ['ToMeReducer', 'ALGMReducer', 'ExpeditReducer']
PLANS = [dict(target_ratio=0.5), dict(keep={0: 0.5, 2: 0.14}), dict(keep={1: 0.1}), dict(rate=1)]
sides = st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda grid: grid[0] * grid[1] > 1)


def merging(kind, **plan):
    return dict(pruner=dict(type=kind), round_to=1, **plan)


@settings(max_examples=60)
@given(
    st.sampled_from(MERGING),
    st.sampled_from(list(SMALL)),
    sides,
    st.sampled_from(PLANS),
    st.sampled_from(['last_layer', None]),
)
def test_no_position_is_lost_in_a_model(kind, family, grid, plan, fusion):
    model = small_vit(family, merging(kind, fusion=fusion, **plan), final_norm=False).eval()
    images = torch.randn(2, 3, 4 * grid[0], 4 * grid[1])
    (level,) = model(images)
    assert level.complete and level.to_dense().shape == (2, 16, *grid)
    held = torch.cat([level.position, *(part.position for part in level.removed)], dim=1) if level.removed else None
    assert held is None or all(sorted(row.tolist()) == list(range(grid[0] * grid[1])) for row in held)
    alone = torch.cat([model(image[None])[0].to_dense() for image in images])
    torch.testing.assert_close(level.to_dense(), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('kind', MERGING)
def test_a_dense_checkpoint_runs_and_trains(kind):
    dense, model = small_vit(), small_vit(pruning=merging(kind, keep={0: 0.5, 2: 0.14}))
    model.load_state_dict(dense.state_dict())
    model.train()
    for with_cp in (False, True):
        model.with_cp = with_cp
        model.zero_grad()
        model(torch.randn(2, 3, 24, 24))[0].to_dense().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('kind', MERGING)
def test_windows_are_refused(kind):
    with pytest.raises(ValueError, match=rf"pruning\.pruner\.type='{kind}' with window_size=3; None is expected"):
        small_vit(pruning=merging(kind, rate=6), window_size=3, global_blocks=[4])
    assert RandomPruner.fits_windows
