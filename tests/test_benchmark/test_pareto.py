"""Accuracy against speed: families, and what each reaches at a speed, by hand."""

import pytest
import torch

from cropr_mm.benchmark.pareto import Point, accuracy_at, draw, families, family_of, table, time_models

POINTS = [
    Point('dense', 1.0, 0.01, (40.0, 41.0, 39.0)),
    Point('cropr', 1.6, 0.02, (38.0,), 2.0),
    Point('cropr-one-shot', 2.2, 0.02, (35.0,)),
    Point('cropr-50', 1.2, 0.02, (39.5,)),
    Point('dense-blocks50', 2.0, 0.02, (30.0,)),
    Point('tome-one-shot-untrained', 1.4, 0.02, (39.0,)),
]


@pytest.mark.parametrize(
    'method, family',
    [
        ('cropr', 'cropr'),
        ('cropr-50', 'cropr'),
        ('cropr-stages3-50', 'cropr'),
        ('cropr-patch-balanced-75', 'cropr-patch-balanced'),
        ('tome-one-shot-untrained', 'tome-untrained'),
        ('random-exit', 'random-exit'),
        ('dense-resolution75', 'dense-resolution'),
    ],
)
def test_a_family_is_a_method_at_any_speed(method, family):
    assert family_of(method) == family


def test_families_begin_at_dense():
    found = families(POINTS)
    assert {name: [p.method for p in members] for name, members in found.items()} == {
        'cropr': ['dense', 'cropr-50', 'cropr', 'cropr-one-shot'],
        'dense-blocks': ['dense', 'dense-blocks50'],
        'tome-untrained': ['dense', 'tome-one-shot-untrained'],
    }


@pytest.mark.parametrize(
    'family, speed, expected',
    [
        ('cropr', 1.4, 38.75),  # half-way between 39.5 at 1.2 and 38 at 1.6
        ('cropr', 2.2, 35.0),
        ('cropr', 2.3, None),
        ('dense-blocks', 1.5, 35.0),
        ('tome-untrained', 1.0, 40.0),
    ],
)
def test_accuracy_at_a_speed(family, speed, expected):
    found = accuracy_at(families(POINTS)[family], speed)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_point_that_is_faster_and_better_counts():
    members = [Point('dense', 1.0, 0, (40.0,)), Point('a-50', 1.5, 0, (30.0,)), Point('a', 2.0, 0, (36.0,))]
    assert accuracy_at(members, 1.4) == 36.0


def test_the_table_and_the_picture(tmp_path):
    text = table(POINTS)
    assert (
        '| dense | 1.00× (1%) | 1.00 | 40.0 (39.0–41.0) |' in text
        and '| cropr-50 | 1.20× (2%) | 1.00 | 39.5 * |' in text
    )
    assert '| cropr | 38.4 | 36.0 | 38.8 | 38.0 |' in text and '| dense-blocks | 35.0 | 30.0 | – | – |' in text
    assert '| tome-untrained | – | – | – | – |' in text
    assert draw(POINTS, tmp_path / 'a.png', 'title', 'mIoU').stat().st_size > 10_000


class Double(torch.nn.Linear):
    def forward(self, inputs, mode):
        assert mode == 'predict'
        return super().forward(inputs)


def test_models_are_timed_and_their_flops_counted():
    models = {f'{width}': (Double(8, width), dict(inputs=torch.zeros(2, 8))) for width in (4, 16)}
    timings, flops = time_models(models, 2, rounds=2)
    assert flops == {'4': 2 * 2 * 8 * 4, '16': 2 * 2 * 8 * 16}
    assert all(len(timing.seconds) == 2 and timing.batch_size == 2 for timing in timings.values())
