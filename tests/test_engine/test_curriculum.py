"""How the rate grows: the published plan, and what holds for every shape."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm import CroprHook, Schedule
from cropr_mm.engine.curriculum import SHAPES, Curriculum

shares = st.floats(0, 1)
shapes = st.sampled_from(sorted(SHAPES))


def test_the_published_curriculum():
    """64 epochs on ADE20K, R grows to 40 in the first 32, in whole numbers, then stays."""
    curriculum, schedule = Curriculum(ramp=0.5, by_epoch=True), Schedule(24, (32, 32), rate=40, round_to=1)
    rates = [schedule.counts((32, 32), 1, curriculum.progress(epoch, 64))[0] for epoch in range(64)]
    assert rates == [math.floor(40 * epoch / 32) for epoch in range(32)] + [40] * 32


@pytest.mark.parametrize('ramp, expected', [(1.0, [i / 8 for i in range(8)]), (0, [1] * 8), (0.25, [0, 0.5, *[1] * 6])])
def test_a_ramp_is_a_share_of_the_training_and_may_be_none(ramp, expected):
    assert [Curriculum(ramp).progress(done, 8) for done in range(8)] == expected


@given(shares, shares, shapes, st.integers(1, 1000))
def test_the_rate_grows_from_0_to_1_and_never_falls(ramp, begin, shape, total):
    begin = min(begin, 1 - ramp)
    curriculum = Curriculum(ramp, begin, shape)
    progress = [curriculum.progress(done, total) for done in range(total + 1)]
    assert all(0 <= a <= b <= 1 for a, b in zip(progress, progress[1:]))
    assert all(p == 0 for done, p in enumerate(progress) if done < begin * total)
    assert all(p == 1 for done, p in enumerate(progress) if done > (begin + ramp) * total + 1e-6)


def test_shapes_differ_in_the_middle():
    halfway = {shape: Curriculum(1.0, 0.0, shape).progress(1, 4) for shape in SHAPES}
    assert halfway == pytest.approx(dict(linear=0.25, cosine=0.1464, cubic=0.5781), abs=1e-4)


@pytest.mark.parametrize('key', ['ramp', 'begin'])
@pytest.mark.parametrize('value', [-0.1, 1.5, '0.5', True, None, float('nan')])
def test_shares_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match=rf'CroprHook.{key}=.*; a share of the training between 0 and 1'):
        CroprHook(**{key: value})


def test_a_rate_that_would_not_be_reached_is_refused():
    with pytest.raises(ValueError, match=r'CroprHook.begin=0.6 and ramp=0.5: .* a sum of at most 1'):
        CroprHook(ramp=0.5, begin=0.6)


def test_an_unknown_shape_is_named():
    with pytest.raises(ValueError, match=r"CroprHook.shape='step' is unknown; valid are 'linear', 'cosine', 'cubic'"):
        CroprHook(shape='step')
