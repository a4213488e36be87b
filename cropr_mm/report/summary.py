"""Numbers of a whole set of images, for each of several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..analysis.routing import KEPT
from ..utils.progress import track
from .contenders import Contender
from .tasks import Task, task_of
from .trace import ImageTrace


@dataclass
class Summary:
    """What one model did with a set of images.

    Attributes:
        scores: of each image, 0 to 1 (:meth:`~cropr_mm.report.tasks.Task.score`).
        counts: sum over the images.
        entered: (depth,), share of the patch tokens that each block works on; the mean of the images.
        covered, reached: (C,), patches' worth of each class; (C, depth), how much of that reached each block.
        right: (depth + 1, 3) by the block after which a token left, the kept ones last: how many pixels or objects
            there were, how many of them this model has right, and how many the dense one.
    """

    scores: list[float] = field(default_factory=list)
    counts: Any = 0
    entered: Any = 0
    covered: Any = 0
    reached: Any = 0
    right: Any = None


@dataclass
class SetSummary:
    """Of all models, the first of which is the dense one, that the others are compared with.

    Attributes:
        task: what they predict.
        labelled: whether images have a ground truth; else the prediction of the dense model takes its place.
        names: of the images.
        models: one each.
    """

    task: Task
    labelled: bool
    names: list[str]
    models: list[Summary]

    def costs(self, model: int) -> list[float]:
        """What pruning cost each image: the score of the dense model less that of another. 0 without any score."""
        return [
            0.0 if np.isnan(dense) or np.isnan(own) else dense - own
            for dense, own in zip(self.models[0].scores, self.models[model].scores)
        ]

    def total(self, model: int) -> float:
        """How right a model is on the whole set, 0 to 1."""
        return self.task.total(self.models[model].counts)

    def order(self) -> list[int]:
        """Images, the one first that pruning cost most: in the mean of all models but the dense one."""
        others = [self.costs(i) for i in range(1, len(self.models))]
        cost = np.mean(others, axis=0) if others else -np.nan_to_num(self.models[0].scores)
        return list(np.argsort(-cost, kind='stable'))


def summarize(contenders: Sequence[Contender], rows: Sequence[int]) -> SetSummary:
    """Run images through all models.

    Args:
        contenders: the dense model first.
        rows: images.

    Raises:
        ValueError: the models predict different things, or there is no image.
    """
    summary: SetSummary | None = None
    for row in track(rows, 'images'):
        traces = [one.trace(row) for one in contenders]
        dense = traces[0]
        if summary is None:
            task = task_of(dense.prediction, number_of_classes(contenders[0], dense))
            summary = SetSummary(task, dense.truth is not None, [], [Summary() for _ in contenders])
        summary.names.append(dense.name or f'image {row}')
        for own, trace, contender in zip(summary.models, traces, contenders):
            if (
                trace.prediction is None
                or dense.prediction is None
                or type(task_of(trace.prediction, 0)) is not type(summary.task)
            ):
                raise ValueError(f'{contender.name} predicts something else than {contenders[0].name}')
            _add(own, summary.task, trace, dense, contender)
    if summary is None:
        raise ValueError('no image to report of')
    return summary


def truth_of(task: Task, trace: ImageTrace, dense: ImageTrace) -> dict[str, Any]:
    """The ground truth, or the dense model's prediction where there is none."""
    if trace.truth is not None:
        return trace.truth
    assert dense.prediction is not None
    return task.as_truth(dense.prediction)


def _add(own: Summary, task: Task, trace: ImageTrace, dense: ImageTrace, contender: Contender) -> None:
    truth = truth_of(task, trace, dense)
    assert trace.prediction is not None and dense.prediction is not None
    counts = task.counts(trace.prediction, truth)
    own.scores.append(task.score(counts))
    own.counts = own.counts + counts
    number = len(own.scores)
    own.entered = own.entered + (trace.entered - own.entered) / number
    left = trace.tokens.left
    exits = left.where(left != KEPT, left.new_tensor(contender.depth))
    cover = task.cover(truth, trace.grid, trace.patch_size)
    if cover is not None:
        own.covered = own.covered + cover.double().sum(dim=0).numpy()
        own.reached = own.reached + reached(cover, exits, contender)
    grid = exits.view(trace.grid).numpy()
    where = task.right_by_exit(trace.prediction, truth, grid, trace.patch_size)
    if where is not None:
        _, by_dense = task.right_by_exit(dense.prediction, truth, grid, trace.patch_size)
        own.right = np.zeros((contender.depth + 1, 3)) if own.right is None else own.right
        for column, values in enumerate((np.ones(len(where[0])), where[1], by_dense)):
            own.right[:, column] += np.bincount(where[0], weights=values, minlength=contender.depth + 1)


def reached(cover: Tensor, exits: Tensor, contender: Contender) -> np.ndarray:
    """How much of each class reaches each block, (C, depth), from (N, C) and (N,), the block after which each left."""
    there = exits[:, None] >= exits.new_tensor(range(contender.depth))
    if contender.fusion:
        there[:, -1] = True
    return (cover.double().T @ there.double()).numpy()


def number_of_classes(contender: Contender, trace: ImageTrace) -> int:
    """As the data set or the checkpoint says, or as many as an image is classified into.

    Raises:
        ValueError: neither says it.
    """
    classes = contender.meta.get('classes')
    if classes:
        return len(classes)
    if trace.prediction is not None and 'classes' in trace.prediction:
        return len(trace.prediction['classes'])
    raise ValueError('neither the data set nor the checkpoint of the first model (meta.dataset_meta) names classes')
