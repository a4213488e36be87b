"""Timing in turns."""

import time

import pytest

from cropr_mm.benchmark.throughput import Timing, compare_throughput


def test_every_round_times_each_once_and_begins_with_another():
    order = []
    calls = {name: (lambda n=name: (order.append(n), time.sleep(0.001))) for name in 'abc'}
    timings = compare_throughput(calls, batch_size=4, rounds=3, warmup=0, min_seconds=0)
    assert ''.join(order) == 'abc' + 'abc' + 'bca' + 'cab'
    assert all(len(t.seconds) == 3 and 0 < t.images_per_second < 4000 for t in timings.values())


def test_figures():
    slow, fast = Timing(8, (2.0, 4.0, 2.0, 2.0, 2.0)), Timing(8, (1.0, 2.0, 1.0, 1.0, 1.0))
    assert slow.images_per_second == 4
    assert fast.ratio_to(slow) == 2
    assert Timing(1, (1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)


@pytest.mark.parametrize('key', ['rounds', 'batch_size'])
def test_wrong_settings_are_named(key):
    with pytest.raises(ValueError, match=f'{key}=0'):
        compare_throughput({}, **{'batch_size': 1, key: 0})
