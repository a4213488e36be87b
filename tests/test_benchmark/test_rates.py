"""Several pruning rates of one model: plans, timing, table and picture."""

import csv

import pytest
import torch
from helpers import cropr, small_vit
from torch import nn

from cropr_mm.benchmark.flops import tokens_per_block
from cropr_mm.benchmark.rates import (
    RatePoint,
    choose_metrics,
    draw_tradeoff,
    metric_range,
    parse_rate,
    schedules_for,
    time_rates,
    write_csv,
)


@pytest.mark.parametrize(
    'text, rate, kind', [('20', 20, int), ('0.1', 0.1, float), ('0', 0, int), ('0.0', 0, int), ('-3', -3, int)]
)
def test_whole_numbers_are_tokens(text, rate, kind):
    assert parse_rate(text) == rate and type(parse_rate(text)) is kind


def test_what_is_no_number_is_named():
    with pytest.raises(ValueError, match=r"rate 'many': a number of tokens, or their share"):
        parse_rate('many')


@pytest.mark.parametrize(
    'plan', [dict(rate=8), dict(rate=4, blocks=(1,), round_to=1), dict(keep={2: 0.2}, fusion=None)], ids=str
)
def test_other_rates_are_those_of_a_model_configured_so(plan):
    backbone = small_vit(pruning=dict(pruner=cropr(), **plan))
    blocks = backbone.schedule.blocks
    for rate, schedule in schedules_for(backbone, [0, 3, 0.1]).items():
        other = {key: value for key, value in plan.items() if key != 'keep'}
        configured = small_vit(pruning=dict(pruner=cropr(), **{**other, 'rate': rate, 'blocks': blocks}))
        assert schedule.counts((6, 6), 1) == configured.schedule.counts((6, 6), 1)
        backbone.schedule = schedule
        assert tokens_per_block(backbone, 24, 24) == tokens_per_block(configured, 24, 24)


@pytest.mark.parametrize('rate', [12, 0.4, -1, 1.5, float('nan')])
def test_a_rate_that_does_not_fit_is_named(rate):
    with pytest.raises(ValueError, match=rf'pruning.rate={rate}'):
        schedules_for(small_vit(pruning=dict(pruner=cropr(), rate=8)), [0, rate])


def test_a_dense_model_has_no_rates():
    with pytest.raises(ValueError, match='pruning is None'):
        schedules_for(small_vit(), [0])


class Model(nn.Module):
    """As much of an mm model as is timed."""

    def __init__(self):
        super().__init__()
        self.backbone = small_vit(pruning=dict(pruner=cropr(), rate=8))
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict' and torch.is_inference_mode_enabled()
        self.seen.append(self.backbone.schedule.rate)
        return self.backbone(inputs)


def test_rates_are_timed_in_turn_and_the_models_own_comes_back():
    model = Model().eval()
    own = model.backbone.schedule
    data = dict(inputs=torch.randn(2, 3, 24, 24), data_samples=[None] * 2)
    points = time_rates(model, schedules_for(model.backbone, [0, 8]), data, images=2, rounds=2)
    assert set(model.seen) == {0, 8} and model.backbone.schedule is own
    first, last = model.seen[: len(model.seen) // 2], model.seen[len(model.seen) // 2 :]
    assert set(first) == set(last) == {0, 8}  # none is done with before the other begins
    assert [point.tokens_pruned for point in points.values()] == [0, pytest.approx(21 / 37)]
    assert all(point.images_per_second > 0 for point in points.values())


def test_an_error_while_timing_leaves_the_model_as_it_was():
    model = Model().eval()
    own = model.backbone.schedule
    with pytest.raises(ValueError, match='rounds=0'):
        time_rates(model, schedules_for(model.backbone, [0]), dict(inputs=torch.zeros(1, 3, 24, 24)), 1, rounds=0)
    assert model.backbone.schedule is own


DET = {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_50': 0.5, 'coco/segm_mAP': 0.2}


@pytest.mark.parametrize(
    'measured, names, chosen',
    [
        (DET, [], ['coco/bbox_mAP', 'coco/segm_mAP']),
        (DET, ['segm_mAP'], ['coco/segm_mAP']),
        (DET, ['coco/bbox_mAP_50'], ['coco/bbox_mAP_50']),
        (dict(aAcc=1.0, mIoU=2.0), [], ['mIoU']),
        ({'accuracy/top1': 1.0, 'accuracy/top5': 1.0}, [], ['accuracy/top1']),
        (dict(depth_error=1.0), [], ['depth_error']),
    ],
)
def test_metrics_to_draw(measured, names, chosen):
    assert choose_metrics(measured, names) == chosen


def test_an_unknown_metric_is_answered_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"metric 'mIoU': the evaluator gives coco/bbox_mAP, coco/bbox_mAP_50"):
        choose_metrics(DET, ['mIoU'])
    with pytest.raises(ValueError, match='no metric'):
        choose_metrics({})


POINTS = [RatePoint(0, 10.0, 0.01, 0.0, dict(mIoU=50.0)), RatePoint(0.05, 12.5, 0.02, 0.5, dict(mIoU=49.25))]


def test_table(tmp_path):
    with open(write_csv(POINTS, tmp_path / 'new' / 'sweep.csv')) as file:
        rows = list(csv.DictReader(file))
    assert [float(row['rate']) for row in rows] == [0, 0.05]
    assert [float(row['mIoU']) for row in rows] == [50, 49.25]
    assert [float(row['speedup']) for row in rows] == [1, 1.25]
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['sweep.csv']


def test_picture(tmp_path):
    path = draw_tradeoff(POINTS, ['mIoU'], tmp_path / 'sweep.png', 'a config')
    assert path.read_bytes().startswith(b'\x89PNG')
    assert [path.name for path in tmp_path.iterdir()] == ['sweep.png']


@pytest.mark.parametrize(
    'values, span',
    [([70.59, 70.41], 7.059 * 1.3), ([50.0, 20.0], 30 * 1.3), ([0.3], 0.03 * 1.3), ([0.0, 0.0], 1.3e-10)],
)
def test_small_differences_look_small(values, span):
    low, high = metric_range(values)
    assert high - low == pytest.approx(span) and low < min(values) <= max(values) < high
    assert (low + high) / 2 == pytest.approx((min(values) + max(values)) / 2)
    assert metric_range([*values, float('nan')]) == (low, high)


def test_rate_0_is_not_called_dense(tmp_path, monkeypatch):
    """Weights that were trained with pruning are not those of a dense model."""
    from matplotlib.axes import Axes

    said, bars = [], []
    monkeypatch.setattr(Axes, 'annotate', lambda self, text, *args, **settings: said.append(text))
    draw = Axes.errorbar
    monkeypatch.setattr(Axes, 'errorbar', lambda *args, **kw: bars.append(kw['xerr']) or draw(*args, **kw))
    draw_tradeoff(POINTS, ['mIoU'], tmp_path / 'sweep.png')
    assert said == ['rate 0, same weights', '0.05  (1.25×)']
    assert bars == pytest.approx([0.05, 0.125])


def test_what_fails_half_way_leaves_the_old_files(tmp_path):
    for name in ('sweep.csv', 'sweep.png'):
        (tmp_path / name).write_text('old')
    broken = [*POINTS, RatePoint(8, 'no number', 0.0, 0.0, dict(mIoU=1.0))]
    with pytest.raises((TypeError, ValueError)):
        write_csv(broken, tmp_path / 'sweep.csv')
    with pytest.raises(KeyError):
        draw_tradeoff(POINTS, ['segm_mAP'], tmp_path / 'sweep.png')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['sweep.csv', 'sweep.png']
    assert all(path.read_text() == 'old' for path in tmp_path.iterdir())


def test_series_are_told_apart(tmp_path, monkeypatch):
    """A colour for the reducer, a marker for the schedule; the line of each begins at the first point."""
    from matplotlib.axes import Axes

    drawn, lines = {}, []
    bar, plot = Axes.errorbar, Axes.plot
    monkeypatch.setattr(
        Axes, 'errorbar', lambda *args, **kw: drawn.update({args[1]: (kw['color'], kw['marker'])}) or bar(*args, **kw)
    )
    monkeypatch.setattr(Axes, 'plot', lambda *args, **kw: lines.append(list(args[1])) or plot(*args, **kw))
    series = ['a, every block', 'a, 3 stages', 'b, every block']
    points = [POINTS[0]]
    points += [RatePoint(0.5, 20.0 + i, 0.0, 0.5, dict(mIoU=40.0), series=one) for i, one in enumerate(series)]
    points.append(RatePoint(0.7, 15.0, 0.0, 0.7, dict(mIoU=30.0), series=series[0]))
    draw_tradeoff(points, ['mIoU'], tmp_path / 'sweep.png')
    assert drawn[20.0] == drawn[15.0] and drawn[20.0][0] == drawn[21.0][0] != drawn[22.0][0]
    assert drawn[20.0][1] == drawn[22.0][1] != drawn[21.0][1]
    assert [line for line in lines if len(line) > 1] == [[10.0, 20.0, 15.0], [10.0, 21.0], [10.0, 22.0]]
    with open(write_csv(points, tmp_path / 'sweep.csv')) as file:
        assert [row['series'] for row in csv.DictReader(file)] == ['', *series, series[0]]
