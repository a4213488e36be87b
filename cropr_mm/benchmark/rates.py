"""The same weights with more or fewer tokens: what accuracy each gives, at what speed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..models import CroprViT, Schedule
from ..models.cropr_vit import Reduction, find_backbone
from ..utils.io import whole_file
from .figures import save_figure
from .flops import pruned_ratio
from .throughput import Timing, compare_throughput

Key = TypeVar('Key')

# Metrics worth a picture, as the evaluators of mmseg, mmdet and mmpretrain name them.
MAIN_METRICS = ('mIoU', 'coco/bbox_mAP', 'coco/segm_mAP', 'coco_panoptic/PQ', 'accuracy/top1')


@dataclass
class RatePoint:
    """One pruning rate.

    Attributes:
        rate: tokens per module (int) or their share (float); 0 prunes nothing, with the same weights.
        images_per_second: of the whole model, median of the rounds.
        spread: distance between the quartiles of the rounds, as a share of the median.
        tokens_pruned: share of all tokens that all pruners together prune, 0 to 1.
        metrics: as the evaluator gives them.
        series: which points differ in their rate alone, such as those of one reducer.
    """

    rate: float
    images_per_second: float
    spread: float
    tokens_pruned: float
    metrics: dict[str, float] = field(default_factory=dict)
    series: str = ''


def parse_rate(text: str) -> float:
    """``'20'`` → 20 tokens, ``'0.1'`` → a share; ``'0'`` and ``'0.0'`` → 0.

    Raises:
        ValueError: no such number.
    """
    try:
        value = float(text)
        return int(text) if text.lstrip('+-').isdigit() else (value or 0)
    except ValueError as error:
        raise ValueError(f'rate {text!r}: a number of tokens, or their share below 1, is expected') from error


def schedules_for(backbone: CroprViT, rates: Iterable[float]) -> dict[float, Schedule]:
    """Schedules that prune at other rates after the same blocks.

    Raises:
        ValueError: the backbone is dense, or a rate does not fit; the message names it.
    """
    own = backbone.schedule
    if own is None:
        raise ValueError('backbone.pruning is None: there is no pruner that could work at another rate')
    shared: dict[str, Any] = dict(blocks=own.blocks, round_to=own.round_to, fusion=own.fusion)
    return {rate: Schedule(backbone.depth, backbone.grid, rate=rate, **shared) for rate in rates}


def time_rates(
    model: nn.Module, schedules: Mapping[float, Schedule], data: Mapping[str, Any], images: int, rounds: int
) -> dict[float, RatePoint]:
    """Time a whole model at each rate, in turn, and restore its own.

    Args:
        model: in evaluation mode.
        schedules: of :func:`schedules_for`.
        data: ``inputs`` and ``data_samples`` of one batch, after the data preprocessor.
        images: how many that are.
        rounds: how often; the median counts.
    """
    pruners = find_backbone(model).pruners
    timed = time_reductions(
        model, {rate: Reduction(schedule, pruners) for rate, schedule in schedules.items()}, data, images, rounds
    )
    return {
        rate: RatePoint(rate, timing.images_per_second, timing.spread, pruned)
        for rate, (timing, pruned) in timed.items()
    }


def time_reductions(
    model: nn.Module, reductions: Mapping[Key, Reduction | None], data: Mapping[str, Any], images: int, rounds: int
) -> dict[Key, tuple[Timing, float]]:
    """Time a whole model with other reductions of tokens, in turn, and restore its own.

    For the arguments see :func:`time_rates`; a reduction of None is the dense model.

    Returns:
        For each: its timing, and the share of all tokens that leave.
    """
    backbone = find_backbone(model)
    own = backbone.reduction

    def predict(reduction: Reduction | None) -> None:
        backbone.reduction = reduction
        model(**data, mode='predict')

    height, width = data['inputs'].shape[-2:]
    timed = {}
    try:
        calls = {str(i): partial(predict, reduction) for i, reduction in enumerate(reductions.values())}
        timings = compare_throughput(calls, images, rounds, device=data['inputs'].device)
        for (key, reduction), timing in zip(reductions.items(), timings.values()):
            backbone.reduction = reduction
            timed[key] = timing, pruned_ratio(backbone, height, width)
    finally:
        backbone.reduction = own
    return timed


def choose_metrics(measured: Mapping[str, float], names: Sequence[str] = ()) -> list[str]:
    """Names of the metrics to draw.

    Args:
        measured: what the evaluator gave.
        names: whole, or the part after the last ``/``; by default those of :data:`MAIN_METRICS` that are there, or
            else the first.

    Raises:
        ValueError: there is no such metric; the message lists those that there are.
    """
    if not measured:
        raise ValueError('test_evaluator gives no metric, so there is nothing to draw')
    chosen = []
    for name in names:
        found = [key for key in measured if name in (key, key.rsplit('/', 1)[-1])]
        if not found:
            raise ValueError(f'metric {name!r}: the evaluator gives {", ".join(measured)}')
        chosen += found
    return chosen or [key for key in MAIN_METRICS if key in measured] or list(measured)[:1]


def write_csv(points: Sequence[RatePoint], path: str | Path) -> Path:
    """One row per point: series, if there are any, rate, share pruned, images/s, spread, times the first, metrics."""
    path = Path(path)
    names = list(dict.fromkeys(name for point in points for name in point.metrics))
    several = any(point.series for point in points)
    with whole_file(path) as partial_file, partial_file.open('w', newline='') as stream:
        writer = csv.writer(stream)
        head = ['series'] if several else []
        writer.writerow([*head, 'rate', 'tokens_pruned', 'images_per_second', 'spread', 'speedup', *names])
        for point in points:
            speed = point.images_per_second
            row = [point.tokens_pruned, speed, point.spread, speed / points[0].images_per_second]
            row += [point.metrics.get(name, float('nan')) for name in names]
            head = [point.series] if several else []
            writer.writerow([*head, point.rate, *(f'{value:.6g}' for value in row)])
    return path


def metric_range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis around these values: wide enough for them, and for a tenth of the largest."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    missing = max(0.1 * max(abs(low), abs(high), 1e-9) - (high - low), 0)
    margin = 0.15 * (high - low + missing)
    return low - missing / 2 - margin, high + missing / 2 + margin


def draw_tradeoff(points: Sequence[RatePoint], metrics: Sequence[str], path: str | Path, title: str = '') -> Path:
    """Draw accuracy against images/s, one panel for each metric; the first point is what the others compare with.

    The vertical axis spans a tenth of the largest value at least, so that small differences look small, and each
    point has the spread of its timing as a horizontal bar. Several series have colours and a legend; a single one has
    its rates and speeds beside the points.

    Args:
        points: rate 0 first.
        metrics: names in ``RatePoint.metrics``.
        path: file to write; its suffix says the format.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(point.series for point in points[1:]))
    several = len(series) > 1
    size = (7.2, 4.8) if several else (5.2, 3.9)
    figure = Figure(figsize=(size[0] * len(metrics), size[1]), dpi=120, facecolor='white', layout='constrained')
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    styles = _styles(series) if several else {one: dict(color='tab:blue', marker='o') for one in series}
    for axis, name in zip(axes, metrics):
        first = points[0]
        _draw_point(axis, first, name, color='black', marker='s', zorder=3)
        for one in series:
            own = [first, *(point for point in points[1:] if point.series == one)]
            if not several:  # of several, rates are in the order given; one may mix tokens and shares
                own.sort(key=lambda point: point.images_per_second)
            x, y = zip(*((point.images_per_second, point.metrics[name]) for point in own))
            axis.plot(x, y, color=styles[one]['color'], alpha=0.35, lw=1.5)
            for i, point in enumerate(point for point in own if point is not first):
                _draw_point(axis, point, name, label='_' if i else one or '_', **styles[one])
        if several:
            axis.axhline(first.metrics[name], color='black', alpha=0.3, lw=1, linestyle=':')
            axis.legend(fontsize=8)
        else:
            for point in points:
                speedup = point.images_per_second / first.images_per_second
                text = 'rate 0, same weights' if not point.rate else f'{point.rate:g}  ({speedup:.2f}×)'
                axis.annotate(
                    text,
                    (point.images_per_second, point.metrics[name]),
                    xytext=(6, 6),
                    textcoords='offset points',
                    fontsize=8,
                )
        axis.set_ylim(*metric_range([point.metrics[name] for point in points]))
        axis.set(xlabel='images/s', ylabel=name)
        axis.margins(x=0.16)
        axis.grid(alpha=0.25)
    return save_figure(figure, path, title)


def _styles(series: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for what stands before the comma in the name of a series, a marker for what follows."""
    colors, markers = (list(dict.fromkeys(one.partition(', ')[i] for one in series)) for i in (0, 2))
    return {
        one: dict(color=f'C{colors.index(head) % 10}', marker='o^Dvp*h'[markers.index(rest) % 7])
        for one in series
        for head, _, rest in [one.partition(', ')]
    }


def _draw_point(axis: Any, point: RatePoint, name: str, **style: Any) -> None:
    speed = point.images_per_second
    axis.errorbar(speed, point.metrics[name], xerr=speed * point.spread / 2, linestyle='', **style)
