"""Which classes each patch shows, from the data samples of mmsegmentation and mmdetection."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

# All modules of a model ask for the same targets; they are worked out once per data sample.
_known: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Tensor]] = WeakKeyDictionary()


def patch_classes(
    sample: Any, grid: tuple[int, int], patch_size: int, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Share of each class in each patch.

    Args:
        sample: a data sample with ``gt_sem_seg``, or with ``gt_instances`` that have boxes.
        grid: (H, W), the patch grid of the padded image.
        patch_size: pixels per patch side.
        num_classes: classes C.
        ignore_index: value of a label map that is no class.

    Returns:
        (H * W, C + 1) float32 in raster order. The last column is background: what no box covers. A row adds up to
        the labelled share of its patch; padding has no label in a label map, and is background among boxes.

    Raises:
        KeyError: the sample has neither.
        ValueError: a class out of range.
    """
    settings = (grid, patch_size, num_classes, ignore_index)
    found = _known.get(sample)
    if found is None or found[0] != settings:
        work_out = _from_boxes if 'gt_instances' in sample else _from_label_map
        found = _known[sample] = (settings, work_out(sample, *settings))
    return found[1]


def label_map(sample: Any, who: str, needs: str = 'gt_sem_seg') -> Tensor:
    """Label map (1, H, W) of a data sample."""
    if 'gt_sem_seg' not in sample:
        raise KeyError(f'{who} needs data samples with {needs}; this one has {", ".join(sample.keys()) or "nothing"}')
    data = sample.gt_sem_seg.data if hasattr(sample.gt_sem_seg, 'data') else sample.gt_sem_seg.sem_seg
    return data if data.ndim == 3 else data[None]


def class_shares(label: Tensor, side: int, num_classes: int, ignore_index: int) -> Tensor:
    """Share of each class in each square of a label map, ignored pixels being of no class.

    Args:
        label: (H, W) int64.
        side: of a square, in pixels; those at the right and at the bottom may reach over the edge.
        num_classes: classes C.
        ignore_index: value that is no class.

    Returns:
        (squares, C) float32 in raster order.
    """
    rows, columns = (-(-length // side) for length in label.shape)
    row, column = (torch.arange(length, device=label.device) // side for length in label.shape)
    square = row[:, None] * columns + column
    cell = (square * num_classes + label)[label != ignore_index]
    counts = torch.bincount(cell, minlength=rows * columns * num_classes)
    return counts.view(-1, num_classes).float() / side**2


def _from_label_map(sample: Any, grid: tuple[int, int], patch_size: int, num_classes: int, ignore_index: int) -> Tensor:
    label = label_map(sample, 'TokenClassAuxHead', 'gt_sem_seg, or gt_instances with bboxes')[0].long()
    _check(label[label != ignore_index], num_classes, f' and {ignore_index} (ignored)')
    height, width = grid[0] * patch_size, grid[1] * patch_size
    label = F.pad(label, (0, width - label.shape[1], 0, height - label.shape[0]), value=ignore_index)
    return F.pad(class_shares(label, patch_size, num_classes, ignore_index), (0, 1))  # no background


def _from_boxes(sample: Any, grid: tuple[int, int], patch_size: int, num_classes: int, ignore_index: int) -> Tensor:
    boxes = sample.gt_instances.bboxes
    boxes = getattr(boxes, 'tensor', boxes).float()  # mmdet wraps them
    labels = sample.gt_instances.labels.long()
    _check(labels, num_classes, '')
    # A small box lies over a large one, as with objects.
    order = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True)
    boxes, labels = boxes[order], labels[order]
    across = [
        _overlap(boxes[:, axis], boxes[:, axis + 2], grid[1 - axis], patch_size)  # x on columns, y on rows
        for axis in (0, 1)
    ]
    covered = (across[1][:, :, None] * across[0][:, None, :]).flatten(1)  # (boxes, patches)
    uncovered = torch.cat([1 - covered, covered.new_ones(1, covered.shape[1])])
    seen = uncovered.flip(0).cumprod(dim=0).flip(0)  # share of each patch that this box and the later ones leave
    with torch.autocast(boxes.device.type, enabled=False):
        shares = F.one_hot(labels, num_classes + 1).float().t() @ (covered * seen[1:])
    shares[num_classes] = seen[0]
    return shares.t().contiguous()


def _overlap(start: Tensor, end: Tensor, patches: int, patch_size: int) -> Tensor:
    """Share of each patch along one axis that lies in [start, end): (boxes, patches)."""
    edge = torch.arange(patches, device=start.device) * patch_size
    inside = torch.minimum(end[:, None], edge + patch_size) - torch.maximum(start[:, None], edge)
    return inside.clamp(min=0) / patch_size


def _check(labels: Tensor, num_classes: int, also: str) -> None:
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.numel():
        raise ValueError(
            f'TokenClassAuxHead: num_classes={num_classes}, but the labels of the batch hold class {int(wrong[0])}; '
            f'0 to {num_classes - 1}{also} are valid'
        )
