"""Auxiliary heads read mm's data samples as they come, bad ones included."""

import math

import pytest
import torch
from helpers import det_sample, seg_sample
from mmengine.structures import BaseDataElement, LabelData, PixelData

from cropr_mm import MultiLabelAuxHead, PatchSegAuxHead

GRID = (2, 3)


def patch_head(**settings):
    return PatchSegAuxHead(3, 8, GRID, 4, **settings)


def multi_head(**settings):
    return MultiLabelAuxHead(3, 8, GRID, 4, **settings)


def patch_logits(labels):
    """Logits that are sure of the given class of each patch."""
    return torch.nn.functional.one_hot(torch.tensor(labels).view(1, -1), 3) * 100.0


def test_the_target_is_the_label_at_the_centre_of_each_patch():
    label = torch.full((8, 12), 2)
    label[2::4, 2::4] = torch.tensor([[0, 1, 2], [2, 1, 0]])
    loss = patch_head().loss(patch_logits([0, 1, 2, 2, 1, 0]), [seg_sample(label)], GRID)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_labels_end_where_the_image_ends():
    """7 × 9 pixels on a grid of 2 × 3 patches: the padding has no label, and the grid is not stretched."""
    label = torch.zeros(7, 9, dtype=torch.long)
    label[:, 8:] = 1
    logits = patch_logits([0, 0, 2, 0, 0, 2])  # the centre of the last column lies in the padding
    assert patch_head().loss(logits, [seg_sample(label)], GRID).item() == pytest.approx(0, abs=1e-6)


def test_another_grid_is_read_at_the_training_grid():
    label = torch.tensor([[0, 1, 2], [2, 1, 0]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    loss = patch_head().loss(patch_logits([0, 1, 2, 2, 1, 0]), [seg_sample(label)], (4, 6))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_label_maps_may_have_any_integer_type(dtype):
    label = torch.full((8, 12), 255, dtype=dtype)
    label[:, :4] = 1
    logits = torch.zeros(1, 6, 3)
    assert patch_head().loss(logits, [seg_sample(label)], GRID).item() == pytest.approx(math.log(3))


def test_mmdets_name_for_a_label_map_is_known():
    sample = BaseDataElement(gt_sem_seg=PixelData(sem_seg=torch.zeros(1, 8, 12, dtype=torch.long)))
    assert patch_head().loss(patch_logits([0] * 6), [sample], GRID).item() == pytest.approx(0, abs=1e-6)


def test_the_ignored_label_can_be_chosen():
    label = torch.zeros(8, 12, dtype=torch.long)
    label[:4] = 7
    loss = patch_head(ignore_index=7).loss(patch_logits([1, 1, 1, 0, 0, 0]), [seg_sample(label)], GRID)
    assert loss.item() == pytest.approx(0, abs=1e-6)


ALL_IGNORED = seg_sample(torch.full((8, 12), 255))


@pytest.mark.parametrize('head, queries', [(patch_head(), 6), (multi_head(), 1)])
def test_all_ignored_labels_give_no_loss_and_no_gradient(head, queries):
    aggregated = torch.randn(2, queries, 8)
    loss = head.loss(head(aggregated), [ALL_IGNORED] * 2, GRID)
    loss.backward()
    assert loss.item() == 0 and all(p.grad.abs().max() == 0 for p in head.parameters())


@pytest.mark.parametrize('head, queries', [(patch_head(), 6), (multi_head(), 1)])
def test_an_ignored_sample_does_not_dilute_the_others(head, queries):
    logits = torch.randn(2, queries, 3)
    labelled = seg_sample(torch.ones(8, 12, dtype=torch.long))
    together = head.loss(logits, [labelled, ALL_IGNORED], GRID)
    torch.testing.assert_close(together, head.loss(logits[:1], [labelled], GRID))


def classes_read(sample):
    """The classes whose logit the loss wants up."""
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    multi_head().loss(logits, [sample], GRID).backward()
    return set((logits.grad[0, 0] < 0).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    'sample, classes',
    [
        (det_sample([2, 0, 2]), {0, 2}),
        (det_sample([]), set()),
        (seg_sample(torch.tensor([[1, 255], [1, 2]])), {1, 2}),
        (BaseDataElement(gt_label=LabelData(label=torch.tensor([1]))), {1}),
        (BaseDataElement(gt_label=torch.tensor([0])), {0}),
    ],
)
def test_present_classes_come_from_whatever_the_sample_has(sample, classes):
    assert classes_read(sample) == classes


def test_a_sample_without_objects_teaches_that_nothing_is_there():
    loss = multi_head().loss(torch.zeros(1, 1, 3), [det_sample([])], GRID)
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize('bad', [3, -1, 254])
@pytest.mark.parametrize('head, queries', [(patch_head(), 6), (multi_head(), 1)])
def test_labels_outside_num_classes_are_named(head, queries, bad):
    label = torch.zeros(8, 12, dtype=torch.long)
    label[:4, :4] = bad
    words = f'{type(head).__name__}: num_classes=3, but .* hold class {bad}; 0 to 2 and 255'
    with pytest.raises(ValueError, match=words):
        head.loss(torch.zeros(1, queries, 3), [seg_sample(label)], GRID)


@pytest.mark.parametrize('head, needs', [(patch_head(), 'gt_sem_seg'), (multi_head(), 'gt_instances, gt_label or')])
def test_a_sample_without_labels_is_named(head, needs):
    sample = BaseDataElement(pred=torch.zeros(1))
    with pytest.raises(KeyError, match=f'{type(head).__name__} needs data samples with {needs}.*this one has pred'):
        head.loss(torch.zeros(1, head.num_queries, 3), [sample], GRID)


@pytest.mark.parametrize('classes', [0, -1, 2.0])
def test_a_head_needs_classes(classes):
    with pytest.raises(ValueError, match=f'aux_head.num_classes={classes}; a positive integer'):
        MultiLabelAuxHead(classes, 8, GRID, 4)


def test_losses_are_float32_for_half_precision_logits():
    loss = multi_head().loss(torch.zeros(1, 1, 3, dtype=torch.bfloat16), [det_sample([0])], GRID)
    assert loss.dtype == torch.float32
