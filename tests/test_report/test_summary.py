"""Numbers of a set against loops over its pixels, tokens and boxes."""

import itertools

import numpy as np
import pytest
import torch
from helpers import cropr
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm.analysis.routing import KEPT
from cropr_mm.report.summary import summarize
from cropr_mm.report.tasks import Classification, Detection, Segmentation, box_iou, match, task_of
from cropr_mm.report.trace import trace_image

from .small import Classifier, Detector, Segmentor, boxed, contend, item, labelled

PRUNING = dict(rate=8, pruner=cropr())


@pytest.fixture
def two():
    """A dense model, and one that prunes, with the same weights, on five images of two sizes."""
    model = Segmentor(PRUNING)
    items = [item(row, (24, 24) if row % 2 else (18, 21)) for row in range(5)]
    return contend(model, items, 'dense', dense=True), contend(model, items, 'pruned')


def test_segmentation_by_loops(two):
    summary = summarize(two, range(5))
    traces = [one.trace(row) for one in two for row in range(5)]
    dense, pruned = traces[:5], traces[5:]
    right = np.zeros((6, 3))
    areas, reached, covered = np.zeros((3, 3)), np.zeros((3, 5)), np.zeros(3)
    for own, other in zip(pruned, dense):
        image = np.zeros((3, 3))
        for y, x in itertools.product(*map(range, own.truth['sem_seg'].shape)):
            label, found = own.truth['sem_seg'][y, x], own.prediction['sem_seg'][y, x]
            if label == 255:
                continue
            left = int(own.tokens.left[y // 4 * own.grid[1] + x // 4])
            left = 5 if left == KEPT else left
            right[left] += [1, found == label, other.prediction['sem_seg'][y, x] == label]
            image[0, label] += label == found
            image[1, found] += 1
            image[2, label] += 1
            covered[label] += 1 / 16
            reached[label] += [(left >= block or block == 4) / 16 for block in range(5)]
        there = image[2] > 0
        iou = [image[0, c] / (image[1, c] + image[2, c] - image[0, c]) for c in range(3) if there[c]]
        assert summary.models[1].scores[pruned.index(own)] == pytest.approx(np.mean(iou))
        areas += image
    assert summary.total(1) == pytest.approx((areas[0] / (areas[1] + areas[2] - areas[0])).mean())
    assert summary.models[1].right == pytest.approx(right)
    assert summary.models[1].covered == pytest.approx(covered)
    assert summary.models[1].reached == pytest.approx(reached)
    assert summary.models[1].entered == pytest.approx(np.mean([own.entered for own in pruned], axis=0))
    assert summary.models[0].reached == pytest.approx(covered[:, None].repeat(5, 1))


def test_cost_and_order(two):
    summary = summarize(two, range(5))
    own, dense = summary.models[1].scores, summary.models[0].scores
    assert summary.costs(1) == pytest.approx([a - b for a, b in zip(dense, own)])
    ordered = [summary.costs(1)[i] for i in summary.order()]
    assert ordered == sorted(ordered, reverse=True) and len(set(ordered)) > 1
    assert summary.names[0] == '0 <é>&.jpg'


def test_without_ground_truth_the_dense_prediction_takes_its_place(two):
    items = [item(row, labels=False) for row in range(3)]
    contenders = [contend(one.model, items, one.name, one.name == 'dense') for one in two]
    summary = summarize(contenders, range(3))
    assert not summary.labelled and summary.models[0].scores == [1, 1, 1]
    assert summary.models[1].scores != [1, 1, 1]
    for right in (summary.models[1].right,):
        assert (right[:, 2] == right[:, 0]).all()  # the dense model agrees with itself


def test_an_image_without_any_label_costs_nothing(two):
    items = [item(0)]
    items[0]['data_samples'].gt_sem_seg.data = torch.full((1, 24, 24), 255)
    contenders = [contend(one.model, items, one.name, one.name == 'dense') for one in two]
    summary = summarize(contenders, [0])
    assert np.isnan(summary.models[1].scores[0]) and summary.costs(1) == [0]


def test_detection_by_hand():
    model = Detector(PRUNING)
    items = [boxed(row) for row in range(2)]
    contenders = contend(model, items, 'dense', dense=True), contend(model, items, 'pruned')
    summary = summarize(contenders, range(2))
    assert isinstance(summary.task, Detection)
    expected = 0
    for row in range(2):
        trace = contenders[1].trace(row)
        boxes, true = trace.prediction['boxes'], trace.truth['boxes']
        hit = [box_iou(boxes[:1], true[:1])[0, 0] >= 0.5, True, False]
        assert summary.models[1].scores[row] == pytest.approx(2 * sum(hit) / (2 + 3))
        exits = np.where(trace.tokens.left == KEPT, 5, trace.tokens.left).reshape(6, 6)
        for (rows, columns), found in zip(
            ((slice(2, 5), slice(1, 4)), (slice(0, 2),) * 2, (slice(0, 3), slice(4, 6))), hit
        ):
            inside = np.sort(exits[rows, columns], axis=None)
            gone = [block for block in range(6) if (inside <= block).sum() * 2 >= inside.size]
            expected += np.bincount([gone[0]], minlength=6) * np.array([[1], [found]])
    assert np.array_equal(summary.models[1].right[:, :2].T, expected)
    assert summary.models[1].covered[2] == pytest.approx(2 * 30 / 16)  # a box of 5 × 6 pixels in each image


def test_classification_by_hand():
    model = Classifier(PRUNING)
    items = [labelled(row) for row in range(3)]
    contenders = contend(model, items, 'dense', dense=True), contend(model, items, 'pruned')
    summary = summarize(contenders, range(3))
    shares = [contenders[1].trace(row).prediction['classes'] for row in range(3)]
    assert isinstance(summary.task, Classification)
    assert summary.models[1].scores == pytest.approx([share[row] for row, share in enumerate(shares)])
    assert summary.total(1) == np.mean([share.argmax() == row for row, share in enumerate(shares)])
    assert summary.models[1].right is None and not np.ndim(summary.models[1].covered)


def test_masks_say_what_an_instance_covers():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, :2], masks[1, :, 6:] = True, True
    labels = dict(boxes=np.array([[0, 0, 8, 8]] * 2), labels=np.array([0, 1]), masks=masks, scores=None)
    cover = Detection(2).cover(labels, (2, 3), 4)
    assert cover.tolist() == [[0.5, 0], [0.5, 0.5], [0, 0], [0, 0], [0, 0.5], [0, 0]]


BOX = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 5)] * 2, st.integers(0, 1))


@given(st.lists(BOX, max_size=5), st.lists(BOX, max_size=5))
def test_matching_by_brute_force(predicted, true):
    def labels(found):
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in found], dtype=float).reshape(-1, 4)
        return dict(boxes=boxes, labels=np.array([c for *_, c in found], dtype=int), scores=None, masks=None)

    def pixels(x, y, w, h, _):
        return set(itertools.product(range(x, x + w), range(y, y + h)))

    paired = match(labels(predicted), labels(true))
    taken = set()
    for i, one in enumerate(predicted):
        free = [j for j, other in enumerate(true) if j not in taken and other[4] == one[4]]
        ious = {j: len(pixels(*one) & pixels(*true[j])) / len(pixels(*one) | pixels(*true[j])) for j in free}
        best = max(ious, key=ious.get, default=None)
        assert paired.predicted[i] == (best is not None and ious[best] >= 0.5)
        taken |= {best} if paired.predicted[i] else set()
    assert set(np.nonzero(paired.true)[0]) == taken


def test_scores_of_nothing():
    nothing = dict(boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=int), scores=None, masks=None)
    assert Detection(2).score(Detection(2).counts(nothing, nothing)) == 1
    assert np.isnan(Segmentation(2).score(np.zeros((3, 2))))


def test_what_cannot_be_reported_is_refused(two):
    with pytest.raises(ValueError, match='neither label maps nor boxes nor classes'):
        task_of(None, 3)
    with pytest.raises(ValueError, match='no image'):
        summarize(two, [])
    with pytest.raises(ValueError, match='pruned predicts something else than dense'):
        summarize([two[0], contend(Classifier(PRUNING), two[1].items, 'pruned')], [0])


def test_a_dense_model_loses_no_token(two):
    trace = trace_image(two[0].set_up(), item())
    assert (trace.tokens.left == KEPT).all() and (trace.entered == 1).all() and not trace.tokens.scores
