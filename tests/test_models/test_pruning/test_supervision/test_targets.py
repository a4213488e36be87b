"""Classes of each patch against pixel-by-pixel counting."""

from types import SimpleNamespace

import pytest
import torch
from helpers import cropr, seg_sample, small_vit
from mmengine.structures import BaseDataElement, InstanceData

from cropr_mm.models.pruning.supervision import targets
from cropr_mm.models.pruning.supervision.targets import (
    Batch,
    for_batch,
    image_class,
    image_classes,
    patch_classes,
    patch_labels,
    square_classes,
)

GRID, PATCH, CLASSES = (3, 4), 4, 3


def box_sample(boxes, labels):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return BaseDataElement(gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor(labels, dtype=torch.long)))


def counted(label, grid=GRID, ignore=255):
    """Shares (H * W, C + 1), one pixel at a time."""
    shares = torch.zeros(grid[0] * grid[1], CLASSES + 1)
    for row in range(label.shape[0]):
        for column in range(label.shape[1]):
            if label[row, column] != ignore:
                shares[row // PATCH * grid[1] + column // PATCH, label[row, column]] += 1 / PATCH**2
    return shares


@pytest.mark.parametrize('size', [(12, 16), (10, 13)])  # whole patches; an image that the backbone pads
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8])
def test_a_label_map_is_counted_patch_by_patch(size, dtype):
    label = torch.randint(CLASSES + 1, size)
    label[label == CLASSES] = 255
    found = patch_classes(seg_sample(label.to(dtype)), GRID, PATCH, CLASSES)
    torch.testing.assert_close(found, counted(label))


def test_the_ignored_label_can_be_chosen():
    label = torch.randint(CLASSES, (12, 16))
    found = patch_classes(seg_sample(label), GRID, PATCH, CLASSES, ignore_index=1)
    torch.testing.assert_close(found, counted(label, ignore=1))


def test_boxes_cover_patches_as_if_painted_large_to_small():
    boxes = [[1, 2, 9, 7], [0, 0, 16, 12], [5, 5, 6, 6], [12, 4, 16, 12]]
    labels = [0, 1, 2, 0]
    painted = torch.full((12, 16), CLASSES)
    for (left, top, right, bottom), label in sorted(
        zip(boxes, labels), key=lambda b: -(b[0][2] - b[0][0]) * (b[0][3] - b[0][1])
    ):
        painted[top:bottom, left:right] = label
    exact = counted(painted)
    found = patch_classes(box_sample(boxes, labels), GRID, PATCH, CLASSES)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(12))
    # Within a patch that several borders cross, coverings are taken as independent, so compare the others exactly.
    crossed = torch.zeros(12, dtype=torch.long)
    for left, top, right, bottom in boxes:
        for patch in range(12):
            y, x = patch // 4 * PATCH, patch % 4 * PATCH
            inside = left <= x and x + PATCH <= right and top <= y and y + PATCH <= bottom
            outside = x + PATCH <= left or right <= x or y + PATCH <= top or bottom <= y
            crossed[patch] += not inside and not outside
    plain = crossed <= 1
    assert plain.sum() >= 8 and (exact[plain] > 0).sum(dim=1).max() > 1
    torch.testing.assert_close(found[plain], exact[plain])


def test_fractional_boxes_count_by_area():
    found = patch_classes(box_sample([[2.5, 0, 4, 2]], [2]), GRID, PATCH, CLASSES)
    share = 1.5 * 2 / PATCH**2
    torch.testing.assert_close(found[0], torch.tensor([0, 0, share, 1 - share]))
    assert torch.equal(found[1:], torch.tensor([0.0, 0, 0, 1]).expand(11, -1))


def test_an_image_without_boxes_is_background():
    found = patch_classes(box_sample([], []), GRID, PATCH, CLASSES)
    assert torch.equal(found, torch.tensor([0.0, 0, 0, 1]).expand(12, -1))


def test_mmdets_boxes_are_unwrapped():
    plain = box_sample([[1, 2, 9, 7]], [0])
    boxes = SimpleNamespace(tensor=plain.gt_instances.bboxes)
    wrapped = {'gt_instances': SimpleNamespace(bboxes=boxes, labels=plain.gt_instances.labels)}

    class Sample(BaseDataElement):
        gt_instances = wrapped['gt_instances']

        def __contains__(self, key):
            return key in wrapped

    assert torch.equal(patch_classes(Sample(), GRID, PATCH, CLASSES), patch_classes(plain, GRID, PATCH, CLASSES))


@pytest.mark.parametrize('bad', [3, -1, 254])
def test_classes_out_of_range_are_named(bad):
    words = f'TokenClassAuxHead: num_classes=3, but .* hold class {bad}; 0 to 2'
    with pytest.raises(ValueError, match=words + r' and 255 \(ignored\) are valid'):
        patch_classes(seg_sample(torch.full((12, 16), bad)), GRID, PATCH, CLASSES)
    with pytest.raises(ValueError, match=words + ' are valid'):
        patch_classes(box_sample([[0, 0, 4, 4]], [bad]), GRID, PATCH, CLASSES)


def test_a_sample_without_labels_is_named():
    sample = BaseDataElement(gt_label=torch.tensor([1]))
    with pytest.raises(
        KeyError, match=r'TokenClassAuxHead needs .*gt_sem_seg, or gt_instances with bboxes; .*gt_label'
    ):
        patch_classes(sample, GRID, PATCH, CLASSES)


@pytest.mark.parametrize(
    'work_out, settings, other',
    [
        (patch_classes, (GRID, PATCH, CLASSES), ((6, 8), 2, CLASSES)),
        (patch_labels, (GRID, PATCH, GRID, CLASSES, 255), ((6, 8), 2, (6, 8), CLASSES, 255)),
        (square_classes, (GRID, PATCH, GRID, 2, CLASSES, 255), (GRID, PATCH, GRID, 3, CLASSES, 255)),
        (image_classes, (CLASSES, 255), (CLASSES + 1, 255)),
        (image_class, (CLASSES, 255), (CLASSES + 1, 255)),
    ],
)
def test_targets_are_made_once_per_step(work_out, settings, other):
    sample = seg_sample(torch.zeros(12, 16, dtype=torch.long))
    if work_out is image_class:
        sample.gt_label = torch.tensor([1])
    step, device = Batch([sample, sample]), torch.device('cpu')
    first = for_batch(work_out, step, device, *settings)
    assert for_batch(work_out, step, device, *settings) is first
    assert for_batch(work_out, step, device, *other) is not first  # another grid or number of classes
    # What changed in place before the next step counts in it.
    sample.gt_sem_seg.data.fill_(1)
    if work_out is image_class:
        sample.gt_label.fill_(2)
    again = for_batch(work_out, Batch([sample, sample]), device, *settings)
    assert not all(torch.equal(a, b) for a, b in zip(again, first))


def test_all_modules_share_the_targets_of_a_step_and_no_two_steps_do(monkeypatch):
    made = []
    monkeypatch.setattr(targets, 'check_classes', lambda *a: made.append(1))
    model = small_vit(pruning=dict(pruner=cropr('PatchSegAuxHead'), rate=4)).train()
    labels = torch.zeros(24, 24, dtype=torch.long)
    samples, losses = [seg_sample(labels)] * 2, []
    for value in (0, 1):
        labels.fill_(value)
        model(torch.ones(2, 3, 24, 24))
        losses.append(model.aux_losses(samples))
    assert len([key for key in losses[0] if key.startswith('aux.')]) > 1
    assert len(made) == 4  # two samples in two steps
    assert losses[0]['loss_aux'] != losses[1]['loss_aux']


@pytest.mark.parametrize('size', [(16, 16), (12, 20), (24, 32), (13, 16), (12, 17)])
def test_a_label_map_larger_than_the_image_is_refused(size):
    sample = seg_sample(torch.zeros(size, dtype=torch.long))
    words = f'gt_sem_seg has {size[0]} × {size[1]} pixels, the image at most 12 × 16; label maps of the size of'
    with pytest.raises(ValueError, match='TokenClassAuxHead: ' + words):
        patch_classes(sample, GRID, PATCH, CLASSES)
    with pytest.raises(ValueError, match='PatchSegAuxHead: ' + words):
        patch_labels(sample, GRID, PATCH, GRID, CLASSES, 255)


@pytest.mark.parametrize(
    'labels, there, counts', [([0, 2, 255], [1, 0, 1], 1), ([255], [0, 0, 0], 0), ([], [0] * 3, 1)]
)
def test_classes_in_a_label_map(labels, there, counts):
    found = image_classes(seg_sample(torch.tensor(labels, dtype=torch.uint8)[None]), CLASSES, 255)
    assert [part.tolist() for part in found] == [there, counts]


def test_boxes_are_counted_in_float32_under_autocast():
    boxes = ([[1.3, 2.1, 9.7, 7.2], [0, 0, 16, 12]], [0, 2])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        shares = patch_classes(box_sample(*boxes), GRID, PATCH, CLASSES)
    assert torch.equal(shares, patch_classes(box_sample(*boxes), GRID, PATCH, CLASSES))
