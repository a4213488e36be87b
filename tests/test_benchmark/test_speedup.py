"""Ways to reduce the tokens of a finished model: what fits, what is shared, and what counts as the best."""

import re

import pytest
import torch
from helpers import cropr, small_vit
from torch import nn

from cropr_mm.benchmark.rates import RatePoint, time_reductions
from cropr_mm.benchmark.speedup import (
    Retrofitted,
    choose_reducers,
    fastest_within,
    list_candidates,
    points_lost,
)
from cropr_mm.benchmark.variants import TRAINING_FREE


def outputs(backbone):
    torch.manual_seed(0)
    with torch.no_grad():
        return backbone.eval()(torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1)))[0].to_dense()


def test_each_is_what_a_model_configured_so_gives():
    dense = small_vit()
    before = outputs(dense)
    found, skipped = list_candidates(dense, TRAINING_FREE, [0.3, 0.6], [2], dict(round_to=4), 'a.pth')
    assert not skipped and len(found) == len(TRAINING_FREE) * 2 * 2
    assert {candidate.series.partition(', ')[2] for candidate in found} == {'every block', '2 stages'}
    for candidate in found:
        configured = small_vit(pruning=candidate.pruning)
        configured.load_state_dict(dense.state_dict())
        dense.reduction = candidate.reduction
        assert torch.equal(outputs(dense), outputs(configured)), candidate.series
        assert candidate.pruning['target_ratio'] == candidate.rate and candidate.pruning['round_to'] == 4
        dense.reduction = None
        assert torch.equal(outputs(dense), before)


def test_rates_share_their_pruners_and_the_model_gets_no_weights():
    backbone = small_vit()
    names = backbone.state_dict().keys()
    rates = [0.1, 0.2, 0.3, 0.4]
    found, _ = list_candidates(backbone, choose_reducers(['tome']), rates, [], {}, 'a.pth')
    assert [candidate.rate for candidate in found] == rates
    assert len({id(candidate.reduction.pruners) for candidate in found}) == 1
    assert backbone.reduction is None and backbone.state_dict().keys() == names


@pytest.mark.parametrize(
    'settings, pruning, left_out',
    [
        (dict(window_size=3), {}, {'tome, every block': r'window_size=3; None is expected'}),
        (dict(arch=dict(class_token=False)), {}, {'attention, every block': r'the attention of the \[CLS\] token'}),
        (dict(out_indices=2), {}, {'random, every block': r'out_indices=\(2,\) leaves out the last block'}),
        ({}, dict(fusion='cross_attention'), {'variance, every block': "pruning.fusion='cross_attention': it has w"}),
    ],
)
def test_what_does_not_fit_is_told(settings, pruning, left_out):
    found, skipped = list_candidates(small_vit(**settings), TRAINING_FREE, [0.5], [], pruning, 'a.pth')
    assert all(re.search(reason, skipped[series]) for series, reason in left_out.items())
    assert {candidate.series for candidate in found} | skipped.keys() == {f'{n}, every block' for n in TRAINING_FREE}


def test_a_model_that_ends_early_reduces_without_fusion():
    backbone = small_vit(out_indices=3)
    assert not list_candidates(backbone, choose_reducers(['tome']), [0.5], [], {}, '')[0]
    plain = dict(fusion=None, blocks=[0, 1])
    (found,), _ = list_candidates(backbone, choose_reducers(['tome']), [0.5], [], plain, '')
    assert found.pruning == dict(pruner=dict(type='ToMeReducer'), target_ratio=0.5, **plain)


def test_numbers_of_stages_and_names():
    with pytest.raises(ValueError, match=r'--stages=5; an integer from 1 to 4'):
        list_candidates(small_vit(), TRAINING_FREE, [0.5], [5], {}, '')
    with pytest.raises(ValueError, match=r'--reducers nobody: of random, variance'):
        choose_reducers(['tome', 'nobody'])
    assert choose_reducers([]) == TRAINING_FREE and list(choose_reducers(['tome'])) == ['tome']


class Whole(nn.Module):
    def __init__(self, pruning=None):
        super().__init__()
        self.backbone = small_vit(pruning=pruning)
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        self.seen.append(None if self.backbone.reduction is None else self.backbone.schedule.rate)
        return self.backbone(inputs)


def test_the_dense_model_is_timed_beside_the_others():
    model = Whole().eval()
    found, _ = list_candidates(model.backbone, choose_reducers(['tome']), [0.6], [], {}, '')
    data = dict(inputs=torch.rand(2, 3, 24, 24), data_samples=[None] * 2)
    timed = time_reductions(model, {'dense': None, 'tome': found[0].reduction}, data, 2, 2)
    half = len(model.seen) // 2
    assert set(model.seen[:half]) == set(model.seen[half:]) == {None, 0.6 / 3}
    assert timed['dense'][1] == 0 and timed['tome'][1] == pytest.approx(21 / 37)
    assert model.backbone.reduction is None


# --- retrofitted ----------------------------------------------------------------------------------------------

PRUNING = dict(pruner=cropr('PatchSegAuxHead'), rate=8, blocks=[0, 2], round_to=4)


def retrofit(pruning=PRUNING):
    """A dense model, and the checkpoint that a retrofit made of it."""
    pruned, dense = Whole(pruning).eval(), Whole().eval()
    dense.load_state_dict({name: value for name, value in pruned.state_dict().items() if 'pruners' not in name})
    return pruned, dense, dict(cfg=f'model = dict(backbone=dict(pruning={pruning!r}))')


def test_retrofitted_pruners_are_those_of_their_checkpoint():
    pruned, dense, meta = retrofit()
    retrofitted = Retrofitted(pruned.state_dict(), meta, dense, 'r.pth')
    assert retrofitted.pruner == PRUNING['pruner'] and retrofitted.settings == dict(round_to=4, blocks=[0, 2])
    found, skipped = list_candidates(
        dense.backbone, {'retrofitted': retrofitted.pruner}, [0.4], [1, 3], retrofitted.settings, 'r.pth',
        retrofitted.load,
    )  # fmt: skip
    assert [candidate.series for candidate in found] == ['retrofitted, every block']
    assert skipped == {
        'retrofitted, 1 stage': 'the checkpoint has pruners after blocks [0, 2], none after [1]',
        'retrofitted, 3 stages': 'the checkpoint has pruners after blocks [0, 2], none after [1]',
    }
    dense.backbone.reduction = found[0].reduction
    configured = small_vit(pruning=found[0].pruning)
    configured.load_state_dict(pruned.backbone.state_dict())
    assert torch.allclose(outputs(dense.backbone), outputs(configured), atol=1e-5)
    assert all(pruner.queries.shape == (1, 16) for pruner in found[0].reduction.pruners.values())


def test_what_is_no_retrofit_is_refused():
    pruned, dense, meta = retrofit()
    weights = pruned.state_dict()
    bare = {name: value for name, value in weights.items() if 'pruners' not in name}
    other = {**weights, 'backbone.norm.bias': weights['backbone.norm.bias'] + 1}
    for state, about, message in (
        (bare, meta, r'--retrofitted r.pth: has no pruners'),
        (weights, {}, r'--retrofitted r.pth: has no config'),
        (other, meta, r'other weights than in the dense checkpoint \(backbone.norm.bias\)'),
    ):
        with pytest.raises(ValueError, match=message):
            Retrofitted(state, about, dense, 'r.pth')


# --- the best of them -----------------------------------------------------------------------------------------


def point(speed, value, metric='mIoU'):
    return RatePoint(0.5, speed, 0.0, 0.5, {metric: value})


@pytest.mark.parametrize(
    'metric, dense, value, lost',
    [('mIoU', 50.0, 49.25, 0.75), ('mIoU', 50.0, 51.0, -1.0), ('coco/bbox_mAP', 0.4, 0.39, 1.0), ('PQ', 0.9, 0.4, 0.5),
     ('accuracy/top1', 80.0, 78.0, 2.0), ('multi-label/mAP', 70.0, 69.0, 1.0)],
)  # fmt: skip
def test_points(metric, dense, value, lost):
    assert points_lost(point(1, value, metric), point(1, dense, metric), metric) == pytest.approx(lost)


def test_the_fastest_within_a_budget():
    dense = point(10, 50.0)
    slow, good, faster, fastest = point(9, 50.5), point(12, 49.8), point(13, 49.2), point(20, 47.0)
    points = [dense, slow, fastest, faster, good]
    assert fastest_within(points, dense, 'mIoU', 0.5) is good
    assert fastest_within(points, dense, 'mIoU', 1.0) is faster
    assert fastest_within(points, dense, 'mIoU', 3.0) is fastest
    assert fastest_within([dense, slow], dense, 'mIoU', 5.0) is None
