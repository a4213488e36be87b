"""Auxiliary heads read mm's data samples as they come, bad ones included."""

import math

import pytest
import torch
from helpers import det_sample, seg_sample
from mmengine.structures import BaseDataElement, LabelData, PixelData

from cropr_mm import ClsAuxHead, MultiLabelAuxHead, PatchSegAuxHead

GRID = (2, 3)


def patch_head(**settings):
    return PatchSegAuxHead(3, 8, GRID, 4, **settings)


def multi_head(**settings):
    return MultiLabelAuxHead(3, 8, GRID, 4, **settings)


def cls_head(classes=3, **settings):
    return ClsAuxHead(classes, 8, GRID, 4, **settings)


def cls_sample(label=None, score=None):
    """A data sample as mmpretrain's data preprocessor gives it, as far as classes go."""
    sample = BaseDataElement()
    if label is not None:
        sample.gt_label = torch.tensor(label).reshape(-1)
    if score is not None:
        sample.gt_score = torch.tensor(score)
    return sample


def patch_logits(labels):
    """Logits that are sure of the given class of each patch."""
    return torch.nn.functional.one_hot(torch.tensor(labels).view(1, -1), 3) * 100.0


def test_the_target_is_the_label_at_the_centre_of_each_patch():
    label = torch.full((8, 12), 2)
    label[2::4, 2::4] = torch.tensor([[0, 1, 2], [2, 1, 0]])
    loss = patch_head().loss(patch_logits([0, 1, 2, 2, 1, 0]), [seg_sample(label)], GRID)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_target_may_be_the_label_at_the_corner():
    label = torch.full((8, 12), 2)
    label[::4, ::4] = torch.tensor([[0, 1, 2], [2, 1, 0]])
    loss = patch_head(pixel='corner').loss(patch_logits([0, 1, 2, 2, 1, 0]), [seg_sample(label)], GRID)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"aux_head\.pixel='middle'; one of centre, corner"):
        patch_head(pixel='middle')


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


def test_shares_of_a_mixed_image_are_what_the_prediction_comes_to():
    shares = torch.tensor([0.7, 0.1, 0.2])
    logits = shares.logit().view(1, 1, 3).requires_grad_()
    multi_head().loss(logits, [cls_sample(0, shares.tolist())], GRID).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 1, 3), rtol=0, atol=1e-7)


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


@pytest.mark.parametrize('classes', [0, -1, 2.0, True])
def test_a_head_needs_classes(classes):
    with pytest.raises(ValueError, match=f'aux_head.num_classes={classes}; a positive integer'):
        MultiLabelAuxHead(classes, 8, GRID, 4)


def test_losses_are_float32_for_half_precision_logits():
    loss = multi_head().loss(torch.zeros(1, 1, 3, dtype=torch.bfloat16), [det_sample([0])], GRID)
    assert loss.dtype == torch.float32


# --- image classification -------------------------------------------------------------------------------------


def cross_entropy(logits, shares, smoothing=0.0):
    """Mean cross-entropy of (B, C) with class shares, written out."""
    total = 0.0
    for row, target in zip(logits.tolist(), shares):
        log_sum = math.log(sum(math.exp(value) for value in row))
        target = [(1 - smoothing) * share + smoothing / len(row) for share in target]
        total -= sum(share * (value - log_sum) for share, value in zip(target, row))
    return total / len(shares)


@pytest.mark.parametrize('smoothing', [0, 0.1])
def test_the_class_of_an_image_is_learned_with_the_main_losss_smoothing(smoothing):
    logits = torch.randn(2, 1, 3)
    samples = [cls_sample(2), BaseDataElement(gt_label=LabelData(label=torch.tensor([0])))]
    loss = cls_head(label_smoothing=smoothing).loss(logits, samples, GRID)
    assert loss.item() == pytest.approx(cross_entropy(logits[:, 0], [[0, 0, 1], [1, 0, 0]], smoothing), rel=1e-5)


@pytest.mark.parametrize('smoothing', [0, 0.1])
def test_mixed_labels_go_before_the_label_of_either_image(smoothing):
    logits, shares = torch.randn(2, 1, 3), [[0.25, 0.0, 0.75], [0.5, 0.5, 0.0]]
    samples = [cls_sample(0, shares[0]), cls_sample(1, shares[1])]
    loss = cls_head(label_smoothing=smoothing).loss(logits, samples, GRID)
    assert loss.item() == pytest.approx(cross_entropy(logits[:, 0], shares, smoothing), rel=1e-5)


def test_a_label_to_ignore_does_not_disturb_mixed_ones():
    mixed = [BaseDataElement(gt_score=torch.tensor([0.25, 0.75, 0.0]))]
    logits = torch.randn(1, 1, 3)
    assert cls_head(ignore_index=255).loss(logits, mixed, GRID) == cls_head().loss(logits, mixed, GRID)


def test_an_unlabelled_image_does_not_dilute_the_others():
    logits = torch.randn(2, 1, 3)
    together = cls_head().loss(logits, [cls_sample(1), cls_sample(-100)], GRID)
    torch.testing.assert_close(together, cls_head().loss(logits[:1], [cls_sample(1)], GRID))
    assert cls_head().loss(logits[:1], [cls_sample(-100)], GRID).item() == 0


@pytest.mark.parametrize(
    'head, sample',
    [(ClsAuxHead, cls_sample(255)), (MultiLabelAuxHead, cls_sample(255)), (MultiLabelAuxHead, det_sample([255]))],
)
def test_255_is_a_class_where_there_are_more(head, sample):
    """255 marks void in label maps alone; ImageNet and LVIS have such a class."""
    logits = torch.zeros(1, 1, 300, requires_grad=True)
    head(300, 8, GRID, 4).loss(logits, [sample], GRID).backward()
    assert (logits.grad[0, 0] < 0).nonzero().flatten().tolist() == [255]


@pytest.mark.parametrize(
    'sample, error, words',
    [
        (cls_sample(3), ValueError, r'ClsAuxHead: num_classes=3, but .* hold class 3; 0 to 2 and -100'),
        (cls_sample([0, 2]), ValueError, r'gt_label=\[0, 2\]; one class is expected.*MultiLabelAuxHead'),
        (cls_sample(score=[0.5, 0.5]), ValueError, r'num_classes=3, but gt_score has 2 values'),
        (cls_sample(score=[1.0, 0.0, 1.0]), ValueError, r'gt_score has 3 values that add up to 2;.*MultiLabelAux'),
        (BaseDataElement(pred=torch.zeros(1)), KeyError, r'needs data samples with gt_label or gt_score.* has pred'),
    ],
)
def test_labels_that_do_not_fit_are_named(sample, error, words):
    with pytest.raises(error, match=words):
        cls_head().loss(torch.zeros(1, 1, 3), [sample], GRID)


def test_multi_label_shares_need_a_value_for_each_class():
    with pytest.raises(ValueError, match='MultiLabelAuxHead: num_classes=3, but gt_score has 2 values'):
        multi_head().loss(torch.zeros(1, 1, 3), [cls_sample(score=[0.5, 0.5])], GRID)


@pytest.mark.parametrize('smoothing', [1, -0.1, True, '0.1'])
def test_a_smoothing_out_of_range_is_named(smoothing):
    with pytest.raises(ValueError, match=r'aux_head.label_smoothing=.*of 0 or more and below 1'):
        cls_head(label_smoothing=smoothing)


# --- a coarser grid of queries --------------------------------------------------------------------------------


@pytest.mark.parametrize('stride', [2, 3, 4])
def test_queries_of_squares_learn_the_share_of_each_class(stride):
    head = PatchSegAuxHead(3, 8, (4, 5), 2, query_stride=stride)
    rows, columns = math.ceil(4 / stride), math.ceil(5 / stride)
    assert head.num_queries == rows * columns
    label = torch.randint(3, (7, 9))  # the image ends inside the last row and column of patches
    label[2:5, 3:6] = 255
    logits = torch.randn(1, rows * columns, 3)
    total, weight = 0.0, 0
    for y in range(7):
        for x in range(9):
            if label[y, x] != 255:
                query = (y // (2 * stride)) * columns + x // (2 * stride)
                total -= logits[0, query].log_softmax(0)[label[y, x]].item()
                weight += 1
    found = head.loss(logits, [seg_sample(label)], (4, 5)).item()
    assert found == pytest.approx(total / weight, rel=1e-5)


def test_squares_on_another_grid_are_read_at_the_training_grid():
    head = PatchSegAuxHead(3, 8, (2, 4), 4, query_stride=2)
    label = torch.tensor([[0, 2]]).repeat_interleave(32, 0).repeat_interleave(32, 1)
    logits = torch.tensor([[[100.0, 0, 0], [0, 0, 100.0]]])
    assert head.loss(logits, [seg_sample(label)], (8, 16)).item() == pytest.approx(0, abs=1e-6)


def test_squares_without_a_label_count_for_nothing():
    head = PatchSegAuxHead(3, 8, (2, 4), 4, query_stride=2)
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = head.loss(logits, [seg_sample(torch.full((8, 16), 255))], (2, 4))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    with pytest.raises(ValueError, match=r'num_classes=3, but the labels of the batch hold class 7'):
        head.loss(logits, [seg_sample(torch.full((8, 16), 7))], (2, 4))


@pytest.mark.parametrize('stride', [0, -1, 1.5, True])
def test_a_wrong_stride_is_named(stride):
    with pytest.raises(ValueError, match=r'aux_head.query_stride=.*; a positive integer'):
        patch_head(query_stride=stride)


# --- rare classes that count as much as others ------------------------------------------------------------------


def uneven_batch():
    """Logits and two label maps of patches of one class each: 0 is frequent, 1 rare, 2 missing, four without."""
    classes = torch.tensor([[0, 0, 0, 1, 0, 255], [0, 255, 0, 1, 255, 255]])
    labels = classes.view(2, *GRID).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.randn(2, 6, 3, requires_grad=True), [seg_sample(label) for label in labels], classes.flatten()


def test_balance_0_is_the_plain_cross_entropy():
    logits, samples, classes = uneven_batch()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), classes, ignore_index=255)
    torch.testing.assert_close(patch_head(balance=0).loss(logits, samples, GRID), expected)
    torch.testing.assert_close(patch_head().loss(logits, samples, GRID), expected)


@pytest.mark.parametrize('balance', [1, 0.5])
def test_balance_weighs_patches_by_how_rare_their_class_is(balance):
    logits, samples, classes = uneven_batch()
    total, weights = 0.0, 0.0
    known = [c for c in classes.tolist() if c != 255]
    for row, label in zip(logits.flatten(0, 1), classes.tolist()):
        if label != 255:
            weight = (known.count(label) / len(known)) ** -balance
            total = total - weight * row.log_softmax(0)[label]
            weights += weight
    found = patch_head(balance=balance).loss(logits, samples, GRID)
    torch.testing.assert_close(found, total / weights)
    if balance == 1:
        share = torch.bincount(classes[classes != 255], minlength=3) / len(known)
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), classes, weight=1 / share.clamp(min=1e-6), ignore_index=255
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('balance', [0, 1])
def test_patches_without_a_label_count_for_nothing(balance, stride):
    head = patch_head(balance=balance, query_stride=stride)
    logits, samples, classes = uneven_batch()
    logits = torch.randn(2, head.num_queries, 3, requires_grad=True)
    head.loss(logits, samples, GRID).backward()
    if stride == 1:
        assert (logits.grad.flatten(0, 1).any(-1) == (classes != 255)).all()
    nothing = [seg_sample(torch.full((8, 12), 255))] * 2
    loss = head.loss(logits.detach().requires_grad_(), nothing, GRID)
    assert loss.item() == 0


@pytest.mark.parametrize('balance', [0, 0.5, 1])
def test_balance_of_squares_weighs_the_shares(balance):
    """Two squares of 2 × 2 patches, pixel by pixel: a pixel of a class with the share f weighs f^-balance."""
    head = PatchSegAuxHead(3, 8, (2, 4), 4, query_stride=2, balance=balance)
    label = torch.randint(2, (8, 16)) * (torch.rand(8, 16) < 0.3)  # mostly 0, no 2
    label[:3, :3] = 255
    logits = torch.randn(1, 2, 3)
    known = label[label != 255].tolist()
    total, weights = 0.0, 0.0
    for y in range(8):
        for x in range(16):
            if label[y, x] != 255:
                weight = (known.count(int(label[y, x])) / len(known)) ** -balance
                total -= weight * logits[0, x // 8].log_softmax(0)[label[y, x]].item()
                weights += weight
    assert head.loss(logits, [seg_sample(label)], (2, 4)).item() == pytest.approx(total / weights, rel=1e-5)


@pytest.mark.parametrize('balance', [-0.1, 1.1, True, '1', float('nan')])
def test_a_wrong_balance_is_named(balance):
    with pytest.raises(ValueError, match=r'aux_head\.balance=.*; a number of 0 or more and at most 1 is expected'):
        patch_head(balance=balance)
