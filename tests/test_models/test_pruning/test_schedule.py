"""Token counts: the published example, and what holds for every schedule."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cropr_mm import Schedule


def falling(keep):
    return dict(zip(sorted(keep), sorted(keep.values(), reverse=True)))


sides = st.integers(1, 40)
grids = st.tuples(sides, sides)
plans = st.one_of(
    st.fixed_dictionaries(dict(rate=st.integers(0, 60))),
    st.fixed_dictionaries(dict(rate=st.floats(0, 0.2))),
    st.fixed_dictionaries(dict(target_ratio=st.floats(0, 0.99))),
    st.fixed_dictionaries(dict(keep=st.dictionaries(st.integers(0, 9), st.floats(0.01, 1), min_size=1).map(falling))),
)


@st.composite
def schedules(draw):
    settings = dict(round_to=draw(st.sampled_from([1, 2, 8])), fusion=draw(st.sampled_from(['last_layer', None])))
    try:
        return Schedule(12, draw(grids), **draw(plans), **settings)
    except ValueError as error:  # a rate that its grid is too small for
        assert 'leaves' in str(error) or 'must stay' in str(error)
        assume(False)


def tokens_after(schedule, grid, prefix, progress=1.0):
    left, after = grid[0] * grid[1] + prefix, []
    for count in schedule.counts(grid, prefix, progress):
        left -= count
        after.append(left)
    return after


def test_the_published_example():
    schedule = Schedule(24, (32, 32), rate=40)
    after = tokens_after(schedule, (32, 32), 1)
    assert after == list(range(984, 143, -40))
    assert schedule.blocks == tuple(range(22))


def test_the_published_ratio_gives_the_published_rate():
    """86 % of 1024 tokens in 22 modules is R = 40."""
    assert tokens_after(Schedule(24, (32, 32), target_ratio=0.86), (32, 32), 1) == list(range(984, 143, -40))


@given(grids, grids, st.floats(0, 0.95), st.sampled_from([1, 8]), st.sampled_from([None, [3], [1, 4, 8]]))
def test_the_target_ratio_is_reached(trained, grid, target, round_to, blocks):
    try:
        schedule = Schedule(12, trained, target_ratio=target, round_to=round_to, blocks=blocks)
    except ValueError as error:
        assert 'leaves' in str(error) or 'must stay' in str(error)
        assume(False)
    left, patches = tokens_after(schedule, grid, 0)[-1], grid[0] * grid[1]
    assert abs(left - (1 - target) * patches) <= max(round_to / 2, 1) + 1e-6 or left == 1


@given(grids, st.integers(1, 100))
def test_keep_is_exact_in_percent(grid, percent):
    patches = grid[0] * grid[1]
    assume(percent * patches >= 100)
    schedule = Schedule(12, grid, keep={3: percent / 100}, round_to=1)
    assert tokens_after(schedule, grid, 0) == [-(-percent * patches // 100)]


def test_without_rounding_the_rate_is_exact():
    assert Schedule(12, (14, 14), rate=10, round_to=1).counts((14, 14), 1) == [10] * 10


def test_without_fusion_there_is_one_module_more():
    assert Schedule(12, (14, 14), rate=10, fusion=None).blocks == tuple(range(11))


def test_one_shot_keeps_a_share_after_one_block():
    schedule = Schedule(24, (16, 16), keep={2: 0.2}, round_to=1, fusion=None)
    assert schedule.blocks == (2,) and tokens_after(schedule, (16, 16), 0) == [52]  # 51.2, rounded up


def test_stepwise_plan_from_a_json_config():
    schedule = Schedule(12, (16, 16), keep={'6': 0.25, '3': 0.5}, round_to=1)
    assert schedule.blocks == (3, 6) and tokens_after(schedule, (16, 16), 0) == [128, 64]


def test_chosen_blocks_alone_prune():
    schedule = Schedule(12, (14, 14), rate=10, blocks=[5, 2], round_to=1)
    assert schedule.blocks == (2, 5) and schedule.counts((14, 14)) == [10, 10]


def test_an_integer_rate_scales_with_the_grid():
    assert Schedule(12, (16, 16), rate=16, round_to=1).counts((32, 32)) == [64] * 10


def test_the_curriculum_moves_in_whole_tokens():
    schedule = Schedule(12, (16, 16), rate=10, round_to=1)
    assert [schedule.counts((16, 16), 0, p)[0] for p in (0, 0.05, 0.1, 0.55, 0.99, 1)] == [0, 0, 1, 5, 9, 10]


def test_tokens_per_block():
    schedule = Schedule(5, (6, 6), rate=8)
    assert schedule.tokens_per_block(5, (6, 6), 1) == [37, 32, 24, 16, 37]  # 37 - 8 = 29, 21, 13: nearest multiples
    assert Schedule(5, (6, 6), rate=8, fusion=None).tokens_per_block(5, (6, 6), 1, fusion=False)[-1] == 8


@given(schedules(), grids, st.integers(0, 5), st.floats(0, 1))
def test_a_patch_token_always_stays_and_none_appears(schedule, grid, prefix, progress):
    counts = schedule.counts(grid, prefix, progress)
    assert len(counts) == len(schedule.blocks) and min(counts) >= 0 and sum(counts) < grid[0] * grid[1]


@given(schedules(), grids, st.integers(0, 5), st.floats(0, 1))
def test_what_goes_on_is_a_multiple_once_tokens_left(schedule, grid, prefix, progress):
    multiple, everything = schedule.round_to, grid[0] * grid[1] + prefix
    for left in tokens_after(schedule, grid, prefix, progress):
        # Less than half a multiple cannot be rounded down to none.
        assert left % multiple == 0 or left == everything or left <= max(multiple / 2, prefix + 1)


@given(schedules(), grids, st.integers(0, 5))
def test_rounding_moves_a_count_by_half_a_multiple_at_most(schedule, grid, prefix):
    patches, n = grid[0] * grid[1], len(schedule.blocks)
    if schedule.keep:
        plan = [patches * ratio for ratio in schedule.keep]
    else:
        share = schedule.rate / schedule.num_patches if isinstance(schedule.rate, int) else schedule.rate
        plan = [patches * (1 - share * m) for m in range(1, n + 1)]
    half = max(schedule.round_to / 2, 1)  # whole tokens, without rounding
    for left, planned in zip(tokens_after(schedule, grid, prefix), plan):
        assert abs(left - prefix - planned) <= half + 1e-6 or left == prefix + 1


@given(schedules(), grids, st.integers(0, 5))
def test_progress_0_prunes_nothing(schedule, grid, prefix):
    assert sum(schedule.counts(grid, prefix, 0.0)) == 0


@given(schedules(), grids, st.integers(0, 5), st.floats(0, 1), st.floats(0, 1))
def test_more_progress_never_leaves_more(schedule, grid, prefix, a, b):
    less, more = (tokens_after(schedule, grid, prefix, p) for p in sorted((a, b)))
    assert all(x >= y for x, y in zip(less, more))


@given(schedules(), st.integers(0, 5))
def test_one_patch_is_never_pruned(schedule, prefix):
    assert sum(schedule.counts((1, 1), prefix)) == 0


@given(grids, st.one_of(st.integers(1, 100), st.floats(0.01, 0.99)), st.sampled_from(['last_layer', None]))
def test_the_limit_in_the_message_fits(grid, rate, fusion):
    try:
        Schedule(12, grid, rate=rate, fusion=fusion)
    except ValueError as error:
        limit = re.search(r'at most ([\d.]+) fits', str(error)).group(1)
        Schedule(12, grid, rate=type(rate)(limit), fusion=fusion)
        assert float(limit) < rate


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(rate=64), r'pruning.rate=64 leaves -60 of 196 tokens after block 3; at most 19 fits 10 pruners'),
        (dict(rate=0.5), r'pruning.rate=0.5 leaves 0 of 196 tokens after block 1; at most 0.0994 fits 10 pruners'),
        (dict(rate=-1), r'pruning.rate=-1; an integer \(tokens\) or a share between 0 and 1'),
        (dict(rate=1.5), r'pruning.rate=1.5; a share below 1'),
        (dict(rate=float('nan')), r'pruning.rate=nan; an integer'),
        (dict(rate=True), r'pruning.rate=True; an integer'),
        (dict(rate='20'), r"pruning.rate='20'; an integer"),
        (dict(), r'pruning.rate=None, pruning.target_ratio=None, pruning.keep=None; exactly one'),
        (dict(rate=5, keep={2: 0.5}), r'pruning.rate=5, pruning.target_ratio=None, pruning.keep={2: 0.5}; exactly one'),
        (dict(target_ratio=1.0), r'pruning.target_ratio=1.0; a share from 0 to 0.9948 is expected'),
        (dict(target_ratio=-0.1), r'pruning.target_ratio=-0.1; a share'),
        (dict(target_ratio='0.8'), r"pruning.target_ratio='0.8'; a share"),
        (dict(target_ratio=True), r'pruning.target_ratio=True; a share'),
        (
            dict(rate=5, fusion='concat'),
            r"pruning.fusion='concat'; one of 'last_layer', 'cross_attention', 'logits', None",
        ),
        (dict(rate=5, round_to=0), r'pruning.round_to=0; a positive integer'),
        (dict(rate=5, blocks=[10]), r'pruning.blocks=\[10\]; different blocks from 0 to 9'),
        (dict(rate=5, blocks=[1, 1]), r'pruning.blocks=\[1, 1\]'),
        (dict(rate=5, blocks=[]), r'pruning.blocks=\[\]'),
        (dict(keep={}), r'pruning.keep=\[\]; different blocks from 0 to 9'),
        (dict(keep={10: 0.5}), r'pruning.keep=\[10\]; different blocks from 0 to 9'),
        (dict(keep={2: 1.5}), r'pruning.keep={2: 1.5}; ratios above 0, at most 1'),
        (dict(keep={2: 0.0}), r'pruning.keep={2: 0.0}; ratios above 0'),
        (dict(keep={2: '0.5'}), r"pruning.keep={2: '0.5'}; ratios above 0"),
        (dict(keep={2: 0.3, 4: 0.5}), r'pruning.keep={2: 0.3, 4: 0.5}; .*falling'),
        (dict(keep={2: 0.001}), r'pruning.keep={2: 0.001} leaves 0.20 of 196 tokens after block 2; at least one'),
        (dict(keep={2: 0.5}, blocks=[2]), r'pruning.blocks=\[2\] goes with pruning.rate or target_ratio'),
    ],
)
def test_errors_name_key_value_and_what_is_valid(settings, words):
    with pytest.raises(ValueError, match=words):
        Schedule(12, (14, 14), **settings)


def test_a_model_too_shallow_is_named():
    with pytest.raises(ValueError, match=r"arch.depth=2 with pruning.fusion='last_layer'; at least 3 blocks"):
        Schedule(2, (14, 14), rate=1)
