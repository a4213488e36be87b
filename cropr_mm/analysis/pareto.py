"""Accuracy against measured speed: which method is ahead at the same images per second."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from ..benchmark.figures import save_figure
from ..benchmark.throughput import Timing, compare_throughput
from ..cli.model import build_model
from ..models.cropr_vit import fold_scorers

RATES = ('50', '75', 'stages3', 'midway', 'one-shot', 'two-blocks')
"""Changes of a method that leave it the same method, faster or slower."""


class Point(NamedTuple):
    """A method at one setting: how many times as fast as the dense model, the quartiles' distance, and its accuracy."""

    method: str
    speed: float
    spread: float
    accuracy: tuple[float, ...]

    @property
    def middle(self) -> float:
        return median(self.accuracy)


def family_of(method: str) -> str:
    """Method without what says how fast it is: ``'tome-50-untrained'`` → ``'tome-untrained'``."""
    if method.startswith('dense'):
        return re.sub(r'\d+$', '', method)
    return re.sub(rf'-({"|".join(RATES)})(?=-|$)', '', method)


def families(points: Sequence[Point], first: str = 'dense') -> dict[str, list[Point]]:
    """Points of each family by speed; each begins at the dense model, from which all of them depart."""
    start = [point for point in points if point.method == first]
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.method != first:
            found.setdefault(family_of(point.method), list(start)).append(point)
    return {name: sorted(members, key=lambda point: point.speed) for name, members in found.items()}


def accuracy_at(members: Sequence[Point], speed: float) -> float | None:
    """Best accuracy of a family at that speed or above, between its points on straight lines; None: it is slower.

    Args:
        members: by speed.
        speed: how many times as fast as the dense model.
    """
    best = [point.middle for point in members if point.speed >= speed]
    for left, right in zip(members, members[1:]):
        if left.speed < speed < right.speed:
            share = (speed - left.speed) / (right.speed - left.speed)
            best.append(left.middle + share * (right.middle - left.middle))
    return max(best) if best else None


def time_methods(
    configs: Mapping[str, Config], batch_size: int, rounds: int, note: Callable[[str], Any] = print
) -> dict[str, Timing]:
    """Time whole models on the first test image, in turn; their weights are initial and play no part.

    Args:
        configs: of the methods.
        batch_size: images per call, the same one several times.
        rounds: see :func:`~cropr_mm.benchmark.throughput.compare_throughput`.
        note: called with a line as each model is ready.
    """
    calls: dict[str, Callable[[], Any]] = {}
    for name, cfg in configs.items():
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        model: Any = build_model(cfg)
        fold_scorers(model)
        sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
        data = model.data_preprocessor(pseudo_collate([sample] * batch_size), False)
        calls[name] = partial(_predict, model, data)
        note(f'{name}: {tuple(data["inputs"].shape)}')
    return compare_throughput(calls, batch_size, rounds)


def _predict(model: nn.Module, data: Mapping[str, Any]) -> None:
    model(**data, mode='predict')


def table(points: Sequence[Point], speeds: Iterable[float] = (1.5, 2.0)) -> str:
    """Markdown: every method, and what each family reaches at the speeds asked for."""
    lines = ['method | × dense | accuracy', '--- | ---: | ---:']
    for point in sorted(points, key=lambda point: (family_of(point.method), point.speed)):
        low, high = min(point.accuracy), max(point.accuracy)
        lines.append(
            f'{point.method} | {point.speed:.2f}× ({point.spread:.0%}) | {point.middle:.1f} ({low:.1f}–{high:.1f})'
        )
    speeds = list(speeds)
    at = [
        ' | '.join(['at the same speed', *(f'{speed:g}×' for speed in speeds)]),
        ' | '.join(['---', *['---:'] * len(speeds)]),
    ]
    reached = {name: [accuracy_at(members, speed) for speed in speeds] for name, members in families(points).items()}
    for name in sorted(reached, key=lambda name: -max(value or 0 for value in reached[name][:1])):
        at.append(' | '.join([name, *('–' if value is None else f'{value:.1f}' for value in reached[name])]))
    return '\n\n'.join('\n'.join(f'| {line} |' for line in part) for part in (lines, at))


def draw(points: Sequence[Point], path: str | Path, title: str, metric: str) -> Path:
    """Accuracy against speed, one line for each family."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.8), dpi=120, facecolor='white', layout='constrained')
    axis = figure.subplots()
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
            color=f'C{i % 10}',
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
