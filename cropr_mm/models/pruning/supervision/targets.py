"""What the auxiliary heads learn: targets from the data samples of mmsegmentation, mmdetection and mmpretrain.

No shape depends on the labels, and nothing is copied to the host: labels on a GPU need no synchronisation. There, a
class out of range stops the training by an assertion on the device, which names the setting as the ValueError
elsewhere does.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = {'centre': 'nearest-exact', 'corner': 'nearest'}
"""Pixels of a patch that may stand for it, and how torch's interpolation calls them."""


class Batch(List[Any]):
    """The data samples of one training step. The targets made from them are kept here, and go with the step."""

    def __init__(self, data_samples: Iterable[Any]) -> None:
        super().__init__(data_samples)
        self.made: dict[tuple[Any, ...], Any] = {}


def for_batch(work_out: Callable[..., Any], data_samples: Sequence[Any], device: torch.device, *settings: Any) -> Any:
    """Targets of all data samples, stacked.

    Args:
        work_out: a function of this module that makes the target of one sample, a tensor or several.
        data_samples: of the batch. In a :class:`Batch` they are made once, whatever the number of pruners that ask.
        device: where they are needed.
        settings: further arguments of ``work_out``.
    """
    made = data_samples.made if isinstance(data_samples, Batch) else {}
    question = (work_out, device, *settings)
    if question not in made:
        targets = [work_out(sample, *settings) for sample in data_samples]
        if isinstance(targets[0], tuple):
            made[question] = tuple(torch.stack(part).to(device) for part in zip(*targets))
        else:
            made[question] = torch.stack(targets).to(device)
    return made[question]


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
    if 'gt_instances' in sample:
        return _boxes_in_patches(sample, grid, patch_size, num_classes)
    who, needs = 'TokenClassAuxHead', 'gt_sem_seg, or gt_instances with bboxes'
    label = _padded_label_map(sample, grid, patch_size, num_classes, ignore_index, who, needs)
    return F.pad(class_shares(label, patch_size, num_classes, ignore_index), (0, 1))  # no background


def patch_labels(
    sample: Any,
    grid: tuple[int, int],
    patch_size: int,
    training_grid: tuple[int, int],
    num_classes: int,
    ignore_index: int,
    pixel: str = 'centre',
) -> Tensor:
    """Class of one of :data:`PIXELS` of each patch, on the training grid ``training_grid``: (h * w,) int64.

    For the other arguments, and the errors, see :func:`patch_classes`.
    """
    label = _padded_label_map(sample, grid, patch_size, num_classes, ignore_index, 'PatchSegAuxHead')
    return F.interpolate(label[None, None].float(), size=training_grid, mode=PIXELS[pixel]).flatten().long()


def square_classes(
    sample: Any,
    grid: tuple[int, int],
    patch_size: int,
    training_grid: tuple[int, int],
    stride: int,
    num_classes: int,
    ignore_index: int,
) -> Tensor:
    """Share of each class in squares of ``stride`` × ``stride`` patches of the training grid: (squares, C) float32."""
    label = _padded_label_map(sample, grid, patch_size, num_classes, ignore_index, 'PatchSegAuxHead')
    sides = (training_grid[0] * patch_size, training_grid[1] * patch_size)
    label = F.interpolate(label[None, None].float(), size=sides, mode='nearest-exact')[0, 0].long()
    return class_shares(label, patch_size * stride, num_classes, ignore_index)


def image_classes(sample: Any, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which classes are in an image.

    Args:
        sample: a data sample with ``gt_instances``, ``gt_score``, ``gt_label`` or ``gt_sem_seg``.
        num_classes: classes C.
        ignore_index: value of a label map that is no class.

    Returns:
        (C,) float32: 1 where the class is there, or its share in a mixed image; and a scalar: 1, or 0 for a label map
        that is ignored as a whole.

    Raises:
        KeyError: the sample has none of them.
        ValueError: a class out of range, or the wrong number of scores.
    """
    who, instances = 'MultiLabelAuxHead', 'gt_instances' in sample
    if 'gt_score' in sample and not instances:
        if len(sample.gt_score) != num_classes:
            raise ValueError(f'{who}: num_classes={num_classes}, but gt_score has {len(sample.gt_score)} values')
        return sample.gt_score.float(), sample.gt_score.new_ones((), dtype=torch.float32)
    if instances or 'gt_label' in sample:
        classes = sample.gt_instances.labels if instances else image_labels(sample)
        check_classes(classes, num_classes, None, who)  # with more than 255 classes, 255 is one of them
        there = classes.new_zeros(num_classes, dtype=torch.float32).index_fill_(0, classes.long(), 1)
        return there, there.new_ones(())
    labels = label_map(sample, who, 'gt_instances, gt_label or gt_sem_seg').flatten().long()
    check_classes(labels, num_classes, ignore_index, who)
    ignored = torch.where(labels == ignore_index, num_classes, labels)  # counted after the classes
    there = labels.new_zeros(num_classes + 1, dtype=torch.float32).index_fill_(0, ignored, 1)[:num_classes]
    return there, there.amax() if labels.numel() else there.new_ones(())


def image_class(sample: Any, num_classes: int, ignore_index: int) -> Tensor:
    """The one class of an image.

    Args:
        sample: a data sample with ``gt_score`` or ``gt_label``.
        num_classes: classes C.
        ignore_index: label that counts for nothing.

    Returns:
        Its share of each class, (C,) float32, where there are scores; otherwise its label, a scalar int64.

    Raises:
        KeyError: the sample has neither.
        ValueError: a class out of range, several classes, or scores that are no shares.
    """
    who = 'ClsAuxHead'
    if 'gt_score' in sample:
        shares = sample.gt_score.float()
        expected = (
            'a share for each class, 1 in all, is expected. For images with several classes use MultiLabelAuxHead'
        )
        got = f'{who}: num_classes={num_classes}, but gt_score has {len(shares)} values that'
        if len(shares) != num_classes or is_wrong((shares.sum() - 1).abs() > 1e-2, f'{got} do not add up to 1'):
            raise ValueError(f'{got} add up to {float(shares.sum()):.3g}; {expected}')
        return shares
    if 'gt_label' not in sample:
        there = ', '.join(sample.keys()) or 'nothing'
        raise KeyError(f'{who} needs data samples with gt_label or gt_score; this one has {there}')
    label = image_labels(sample)
    if label.numel() != 1:
        raise ValueError(
            f'{who}: an image has gt_label={label.tolist()}; one class is expected. For images with several '
            'classes use MultiLabelAuxHead'
        )
    check_classes(label, num_classes, ignore_index, who)
    return label.reshape(()).long()


def image_labels(sample: Any) -> Tensor:
    """Classes (K,) of an image, as mmpretrain and mmengine keep them."""
    return sample.gt_label.label if hasattr(sample.gt_label, 'label') else sample.gt_label


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
    cells = rows * columns * num_classes  # and one more for what is ignored
    cell = torch.where(label == ignore_index, cells, square * num_classes + label).flatten()
    counts = torch.zeros(cells + 1, device=label.device)
    counts.scatter_add_(0, cell, counts.new_ones(()).expand_as(cell))
    return counts[:cells].view(-1, num_classes) / side**2


def check_classes(labels: Tensor, num_classes: int, ignore_index: int | None, who: str) -> None:
    """Raise ValueError, in the name of the head ``who``, where a label is neither a class nor ``ignore_index``.

    On CUDA see :func:`is_wrong`.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    wrong = wrong if ignore_index is None else wrong & (labels != ignore_index)
    also = '' if ignore_index is None else f' and {ignore_index} (ignored)'
    got = f'{who}: num_classes={num_classes}, but the labels of the batch hold'
    expected = f'0 to {num_classes - 1}{also} are valid'
    if is_wrong(wrong.any(), f'{got} another class; {expected}'):
        raise ValueError(f'{got} class {int(labels[wrong][0])}; {expected}')


def is_wrong(wrong: Tensor, message: str) -> bool:
    """Whether a check of labels failed. On CUDA this does not synchronise: the device asserts it and stops.

    Args:
        wrong: scalar bool.
        message: of the device, at most 250 characters.
    """
    if asserts(wrong):
        torch._assert_async(~wrong, message)
        return False
    return bool(wrong)


def asserts(tensor: Tensor) -> bool:
    """Whether the device of a tensor can check it without a synchronisation."""
    return tensor.is_cuda


def _padded_label_map(
    sample: Any,
    grid: tuple[int, int],
    patch_size: int,
    num_classes: int,
    ignore_index: int,
    who: str,
    needs: str = 'gt_sem_seg',
) -> Tensor:
    """(H, W) int64. The backbone pads images to whole patches; the padding has no label."""
    label = label_map(sample, who, needs)[0].long()
    check_classes(label, num_classes, ignore_index, who)
    pad_h, pad_w = grid[0] * patch_size - label.shape[0], grid[1] * patch_size - label.shape[1]
    if min(pad_h, pad_w) < 0:
        raise ValueError(
            f'{who}: gt_sem_seg has {label.shape[0]} × {label.shape[1]} pixels, the image at most '
            f'{grid[0] * patch_size} × {grid[1] * patch_size}; label maps of the size of the image are expected'
        )
    return F.pad(label, (0, pad_w, 0, pad_h), value=ignore_index)


def _boxes_in_patches(sample: Any, grid: tuple[int, int], patch_size: int, num_classes: int) -> Tensor:
    boxes = sample.gt_instances.bboxes
    boxes = getattr(boxes, 'tensor', boxes).float()  # mmdet wraps them
    labels = sample.gt_instances.labels.long()
    check_classes(labels, num_classes, None, 'TokenClassAuxHead')
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
        of_class = torch.arange(num_classes + 1, device=labels.device)[:, None] == labels  # one_hot looks at values
        shares = of_class.float() @ (covered * seen[1:])
    shares[num_classes] = seen[0]
    return shares.t().contiguous()


def _overlap(start: Tensor, end: Tensor, patches: int, patch_size: int) -> Tensor:
    """Share of each patch along one axis that lies in [start, end): (boxes, patches)."""
    edge = torch.arange(patches, device=start.device) * patch_size
    inside = torch.minimum(end[:, None], edge + patch_size) - torch.maximum(start[:, None], edge)
    return inside.clamp(min=0) / patch_size
