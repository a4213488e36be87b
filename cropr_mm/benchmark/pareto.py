"""Accuracy against measured speed: which method is ahead at the same images per second."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import nn

from ..analysis.methods import RATES, is_dense
from .figures import save_figure
from .flops import count_flops
from .throughput import Timing, compare_throughput


class Point(NamedTuple):
    """A method at one setting.

    Attributes:
        speed: how many times as fast as the dense model it was measured to be.
        spread: distance between the quartiles of its times, as a share of the median.
        accuracy: of each seed.
        flops: of the dense model, over its own: what the speed would be if nothing but FLOPs took time.
    """

    method: str
    speed: float
    spread: float
    accuracy: tuple[float, ...]
    flops: float = 1.0

    @property
    def middle(self) -> float:
        return median(self.accuracy)


def family_of(method: str) -> str:
    """Method without what says how fast it is: ``'tome-50-untrained'`` → ``'tome-untrained'``."""
    if is_dense(method):
        return re.sub(r'\d+$', '', method)
    return re.sub(rf'-({"|".join(RATES)})(?=-|$)', '', method)


def families(points: Sequence[Point], first: str = 'dense', by: str = 'speed') -> dict[str, list[Point]]:
    """Points of each family, by speed or by FLOPs; each begins at the dense model, from which all of them depart."""
    start = [point for point in points if point.method == first]
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.method != first:
            found.setdefault(family_of(point.method), list(start)).append(point)
    return {name: sorted(members, key=lambda point: getattr(point, by)) for name, members in found.items()}


def accuracy_at(members: Sequence[Point], speed: float, by: str = 'speed') -> float | None:
    """Best accuracy of a family at that speed or above, between its points on straight lines; None: it is slower.

    Args:
        members: of :func:`families`.
        speed: how many times as fast as the dense model, or as few FLOPs.
        by: ``'speed'`` or ``'flops'``.
    """
    at = [getattr(point, by) for point in members]
    best = [point.middle for point, own in zip(members, at) if own >= speed]
    for left, right, low, high in zip(members, members[1:], at, at[1:]):
        if low < speed < high:
            share = (speed - low) / (high - low)
            best.append(left.middle + share * (right.middle - left.middle))
    return max(best) if best else None


def time_models(
    models: Mapping[str, tuple[nn.Module, Mapping[str, Any]]], batch_size: int, rounds: int
) -> tuple[dict[str, Timing], dict[str, int]]:
    """Time whole models in turn, and count the FLOPs of a call.

    Args:
        models: each with a batch, after its data preprocessor; pruners folded.
        batch_size: images of that.
        rounds: see :func:`~cropr_mm.benchmark.throughput.compare_throughput`.
    """
    calls = {name: partial(_predict, model, data) for name, (model, data) in models.items()}
    flops = {name: count_flops(call) for name, call in calls.items()}
    return compare_throughput(calls, batch_size, rounds), flops


def _predict(model: nn.Module, data: Mapping[str, Any]) -> None:
    model(**data, mode='predict')


def table(points: Sequence[Point], speeds: Iterable[float] = (1.5, 2.0)) -> str:
    """Markdown: every method, and what each family reaches at the speeds asked for, measured and by FLOPs."""
    lines = ['method | × dense | FLOPs | accuracy', '--- | ---: | ---: | ---:']
    for point in sorted(points, key=lambda point: (family_of(point.method), point.speed)):
        low, high = min(point.accuracy), max(point.accuracy)
        accuracy = f'{point.middle:.1f}' + (f' ({low:.1f}–{high:.1f})' if len(point.accuracy) > 1 else ' *')
        lines.append(f'{point.method} | {point.speed:.2f}× ({point.spread:.0%}) | {point.flops:.2f} | {accuracy}')
    at = [(by, speed) for by in ('speed', 'flops') for speed in speeds]
    names = {'speed': '{:g}× measured', 'flops': '{:g}× by FLOPs'}
    members = {by: families(points, by=by) for by in names}
    reached = {name: [accuracy_at(members[by][name], speed, by) for by, speed in at] for name in members['speed']}
    rows = [' | '.join(['at the same speed', *(names[by].format(speed) for by, speed in at)])]
    rows.append(' | '.join(['---', *['---:'] * len(at)]))
    for name in sorted(reached, key=lambda name: [-(value or 0) for value in reached[name]]):
        rows.append(' | '.join([name, *('–' if value is None else f'{value:.1f}' for value in reached[name])]))
    return '\n\n'.join('\n'.join(f'| {line} |' for line in part) for part in (lines, rows))


def draw(points: Sequence[Point], path: str | Path, title: str, metric: str) -> Path:
    """Accuracy against speed, one line for each family."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.8), dpi=120, facecolor='white', layout='constrained')
    axis = figure.subplots()
    colors = colormaps['tab20']
    for i, (name, members) in enumerate(sorted(families(points).items())):
        dense = name.startswith('dense')
        axis.errorbar(
            [point.speed for point in members],
            [point.middle for point in members],
            yerr=[
                [point.middle - min(point.accuracy) for point in members],
                [max(point.accuracy) - point.middle for point in members],
            ],
            label=name.replace('dense-', 'dense, '),
            color=colors(i % 20),
            linestyle='--' if dense else '-',
            marker='s' if dense else 'o',
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            alpha=0.9,
        )
    axis.set(xlabel='times as fast as dense', ylabel=metric)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False, bbox_to_anchor=(1.01, 1), loc='upper left')
    return save_figure(figure, path, title)
