"""What segmentation, detection and classification have in common for a report: how right a prediction is, and where."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..analysis.pictures import SCORE
from ..models.pruning.oracle import in_patches
from ..models.pruning.supervision.targets import class_shares

Labels = dict
"""As :func:`~cropr_mm.analysis.pictures.labels_of` gives them."""
IGNORED = 255
"""Value of a label map that is no class, as in mmsegmentation."""
OVERLAP = 0.5
"""IoU of two boxes from which on they are of the same object."""


class Task:
    """How predictions of one kind are judged. What tells of a prediction are *counts*, which add up over images.

    Args:
        num_classes: C.

    Attributes:
        kind: of the task, in one word.
        metric: of a set.
        about: what that is, in words.
        each: of one image, in words.
    """

    kind = ''
    metric = ''
    about = ''
    each = ''

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def counts(self, prediction: Labels, truth: Labels) -> np.ndarray:
        """Counts of one image."""
        raise NotImplementedError

    def score(self, counts: np.ndarray) -> float:
        """How right one image is, 0 to 1; NaN where its truth has nothing to say."""
        raise NotImplementedError

    def total(self, counts: np.ndarray) -> float:
        """How right all images of these summed counts are, 0 to 1."""
        return self.score(counts)

    def as_truth(self, prediction: Labels) -> Labels:
        """A prediction in place of a ground truth that is not there."""
        return prediction

    def right_by_exit(self, prediction: Labels, truth: Labels, exits: np.ndarray, patch_size: int) -> Any:
        """Where the prediction is right, by when tokens left.

        Args:
            prediction, truth: of an image.
            exits: (h, w) integer from 0 on, when each token left.
            patch_size: pixels per patch side.

        Returns:
            When, right (K,) each: of pixels or objects; None where a prediction is of no place.
        """
        return None

    def cover(self, labels: Labels, grid: tuple[int, int], patch_size: int) -> Tensor | None:
        """Share of each patch that each class covers, (h * w, C) float32; None where labels are of no place."""
        return None


class Segmentation(Task):
    kind = 'segmentation'
    metric = 'mIoU'
    about = 'of the classes that the ground truth of the set has'
    each = 'mean IoU of the classes in its ground truth'

    def counts(self, prediction: Labels, truth: Labels) -> np.ndarray:
        found, true = prediction['sem_seg'], truth['sem_seg']
        known = self._known(true)
        areas = (true[known & (found == true)], found[known], true[known])
        return np.stack([np.bincount(area, minlength=self.num_classes)[: self.num_classes] for area in areas])

    def score(self, counts: np.ndarray) -> float:
        both, found, true = counts[:, counts[2] > 0]
        return float((both / (found + true - both)).mean()) if len(true) else float('nan')

    def _known(self, true: np.ndarray) -> np.ndarray:
        return (true >= 0) & (true < self.num_classes) & (true != IGNORED)

    def right_by_exit(self, prediction: Labels, truth: Labels, exits: np.ndarray, patch_size: int) -> Any:
        found, true = prediction['sem_seg'], truth['sem_seg']
        pixels = exits.repeat(patch_size, 0).repeat(patch_size, 1)[: true.shape[0], : true.shape[1]]
        known = self._known(true)
        return pixels[known], (found == true)[known]

    def cover(self, labels: Labels, grid: tuple[int, int], patch_size: int) -> Tensor | None:
        own = torch.from_numpy(np.where(self._known(labels['sem_seg']), labels['sem_seg'], self.num_classes))
        padded = torch.full((grid[0] * patch_size, grid[1] * patch_size), self.num_classes)
        padded[: own.shape[0], : own.shape[1]] = own
        return class_shares(padded, patch_size, self.num_classes, self.num_classes)


class Detection(Task):
    kind = 'detection'
    metric = 'F1'
    about = f'of boxes with a score of {SCORE:g} or more, right where class and place are (IoU of {OVERLAP:g} or more)'
    each = 'F1 of its boxes'

    def counts(self, prediction: Labels, truth: Labels) -> np.ndarray:
        found, _ = match(prediction, truth)
        return np.array([found.sum(), len(prediction['boxes']), len(truth['boxes'])])

    def score(self, counts: np.ndarray) -> float:
        found, predicted, true = counts
        return float(2 * found / (predicted + true)) if predicted + true else 1.0

    def right_by_exit(self, prediction: Labels, truth: Labels, exits: np.ndarray, patch_size: int) -> Any:
        """An object leaves when half of the tokens in its box have left."""
        _, found = match(prediction, truth)
        when = []
        for box in truth['boxes']:
            left, top = (box[:2] // patch_size).astype(int)
            right, bottom = -(-box[2:] // patch_size).astype(int)
            own = exits[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)]
            when.append(int(np.sort(own, axis=None)[(own.size - 1) // 2]) if own.size else 0)
        return np.array(when, dtype=int), found

    def cover(self, labels: Labels, grid: tuple[int, int], patch_size: int) -> Tensor | None:
        shares = torch.zeros(grid[0] * grid[1], self.num_classes)
        for label in set(labels['labels'].tolist()):
            plane = torch.zeros(grid[0] * patch_size, grid[1] * patch_size)
            own = labels['labels'] == label
            masks = labels['masks']
            if masks is not None and len(masks):
                covered = torch.from_numpy(np.asarray(masks[own]).any(axis=0)).float()
                plane[: covered.shape[0], : covered.shape[1]] = covered
            else:
                for x0, y0, x1, y1 in labels['boxes'][own].round().astype(int):
                    plane[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
            shares[:, label] = in_patches(plane[None], patch_size).flatten()
        return shares


class Classification(Task):
    kind = 'classification'
    metric = 'top-1'
    about = 'share of the images whose likeliest class is right'
    each = 'probability of its true class'

    def counts(self, prediction: Labels, truth: Labels) -> np.ndarray:
        shares, labels = prediction['classes'], truth['labels']
        return np.array([shares[labels].sum(), float(shares.argmax() in labels), 1])

    def score(self, counts: np.ndarray) -> float:
        return float(counts[0] / counts[2])

    def total(self, counts: np.ndarray) -> float:
        return float(counts[1] / counts[2])

    def as_truth(self, prediction: Labels) -> Labels:
        return dict(labels=prediction['classes'].argmax(keepdims=True))


class Matched(NamedTuple):
    """Which of the predicted and which of the true boxes have a partner: bool arrays."""

    predicted: np.ndarray
    true: np.ndarray


def match(prediction: Labels, truth: Labels) -> Matched:
    """Pair boxes of the same class that overlap; each, the surest first, with the free one that it overlaps most."""
    boxes, true = prediction['boxes'], truth['boxes']
    paired = Matched(np.zeros(len(boxes), dtype=bool), np.zeros(len(true), dtype=bool))
    if not len(boxes) or not len(true):
        return paired
    overlap = box_iou(boxes, true)
    overlap[prediction['labels'][:, None] != truth['labels'][None]] = 0
    scores = prediction['scores']
    order = range(len(boxes)) if scores is None else np.argsort(-np.asarray(scores), kind='stable')
    for i in order:
        best = int(np.where(paired.true, 0, overlap[i]).argmax())
        if overlap[i, best] >= OVERLAP and not paired.true[best]:
            paired.predicted[i] = paired.true[best] = True
    return paired


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each box (K, 4) with each other (L, 4): (K, L)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clip(min=0).prod(axis=2)
    area, other_area = ((b[:, 2:] - b[:, :2]).clip(min=0).prod(axis=1) for b in (boxes, others))
    return both / (area[:, None] + other_area[None] - both).clip(min=1e-9)


def task_of(prediction: Labels | None, num_classes: int) -> Task:
    """The task that a prediction is of.

    Raises:
        ValueError: of none that a report knows.
    """
    kinds: dict[str, type[Task]] = dict(sem_seg=Segmentation, boxes=Detection, classes=Classification)
    for key, kind in kinds.items():
        if prediction is not None and key in prediction:
            return kind(num_classes)
    raise ValueError('the model predicts neither label maps nor boxes nor classes, so there is nothing to report')
