"""What a trace tells of each token is what a replay in plain loops gives."""

import copy

import numpy as np
import pytest
import torch
from helpers import cropr
from mmengine.dataset import pseudo_collate

from cropr_mm.analysis.routing import KEPT, predict_with_routing
from cropr_mm.report.trace import NOBODY, record_steps, trace_image, trace_tokens

from .small import CLASSES, Segmentor, Slider, item

PRUNING = dict(rate=8, pruner=cropr())


def root(trace, i):
    while trace.owner[i] != NOBODY:
        i = int(trace.owner[i])
    return i


def with_table(model):
    """Let every pruner score by position, from a table; returns it."""
    table = {block: torch.randn(36) for block in model.backbone.pruners}
    for block, pruner in model.backbone.pruners.items():
        pruner.score = lambda tokens, context, block=block: table[block][tokens.position]
    return table


@pytest.mark.parametrize('family', ['vit', 'dinov2'])  # one, or three prefix tokens
def test_blocks_and_scores_of_pruned_tokens(family):
    model = Segmentor(PRUNING, family=family).eval()
    table = with_table(model)
    trace = trace_image(model, item()).tokens
    current, left = list(range(36)), {}
    for block, count in model.backbone.counts((6, 6)).items():
        scores = trace.scores[block]
        assert [i for i in range(36) if not np.isnan(scores[i])] == current
        assert all(scores[i] == table[str(block)][i] for i in current)
        current.sort(key=lambda i: float(table[str(block)][i]))
        left.update(dict.fromkeys(current[:count], block))
        current = sorted(current[count:])
    assert trace.left.tolist() == [left.get(i, KEPT) for i in range(36)]
    assert (trace.owner == NOBODY).all()


def test_listening_leaves_no_trace():
    model = Segmentor(PRUNING).eval()
    with record_steps(model.backbone):
        pass
    for pruner in model.backbone.pruners.values():
        assert 'score' not in vars(pruner) and not pruner._forward_hooks
    own = model.backbone.pruners['0'].score = lambda tokens, context: tokens.position.float()
    with pytest.raises(ZeroDivisionError), record_steps(model.backbone):
        raise ZeroDivisionError
    assert model.backbone.pruners['0'].score is own and not model.backbone._forward_pre_hooks


@pytest.mark.parametrize('kind', ['ToMeReducer', 'ALGMReducer', 'into nearest'])
def test_merged_tokens_have_the_value_of_their_owner(kind):
    pruning = dict(rate=6, pruner=dict(type=kind), fusion=None)
    if kind == 'into nearest':
        pruning.update(pruner=cropr(), absorb='nearest')
    model = Segmentor(pruning).eval()
    trace = trace_image(model, item()).tokens
    assert int((trace.owner != NOBODY).sum()) == int((trace.left != KEPT).sum()) > 20
    with torch.no_grad():
        data = model.data_preprocessor(pseudo_collate([item()]), False)
        values = model.maps(data['inputs'])[0].flatten(1).T
    for i in range(36):
        own = root(trace, i)
        assert trace.left[own] == KEPT
        assert torch.equal(values[i], values[own])
    assert len(torch.unique(values, dim=0)) == int((trace.left == KEPT).sum())


def test_of_several_owners_the_heaviest_counts():
    model = Segmentor(dict(keep={2: 0.3}, pruner=dict(type='ExpeditReducer'), fusion=None)).eval()
    with record_steps(model.backbone) as passes:
        predict_with_routing(model, pseudo_collate([item()]))
    (step,) = passes[0]
    (part,) = step.removed
    trace = trace_tokens(passes[0], 0, 36)
    for position, owners, weights in zip(part.position[0].tolist(), part.owner[0].tolist(), part.weight[0].tolist()):
        assert trace.owner[position] == owners[weights.index(max(weights))]
        assert trace.left[position] == 2


def test_tokens_of_sliding_windows_are_those_of_the_window_in_which_they_went_deepest():
    model, image = Slider(PRUNING).eval(), item(1, (SIDE := 24, 36))
    tables = with_table(model)
    trace = trace_image(model, image)
    with record_steps(model.backbone) as passes:
        routed = predict_with_routing(model, pseudo_collate([image]))
    assert trace.grid == (6, 9) and torch.equal(trace.tokens.left.view(6, 9), routed.deepest()[0])
    windows = [trace_tokens(steps, 0, 36) for steps in passes]
    for y in range(SIDE // 4):
        for x in range(9):
            seen = [(windows[k], y * 6 + x - first) for k, first in enumerate((0, 2, 3)) if 0 <= x - first < 6]
            depth = [99 if window.left[at] == KEPT else int(window.left[at]) for window, at in seen]
            first = depth.index(max(depth))
            window, at = seen[-1 - depth[::-1].index(99) if max(depth) == 99 else first]  # the last that keeps it
            assert trace.tokens.left[y * 9 + x] == window.left[at]
            for block, scores in trace.tokens.scores.items():
                expected = tables[str(block)][at] if window.left[at] in (KEPT, *range(block, 5)) else torch.nan
                assert scores[y * 9 + x] == expected or (np.isnan(scores[y * 9 + x]) and np.isnan(expected))


def test_owners_in_sliding_windows_are_positions_of_the_whole_image():
    model, image = Slider(dict(rate=6, pruner=dict(type='ToMeReducer'))).eval(), item(1, (24, 36))
    tokens = trace_image(model, image).tokens
    merged = tokens.owner != NOBODY
    assert merged.any() and (tokens.owner[merged] < 54).all()
    columns = [abs(int(i) % 9 - int(tokens.owner[i]) % 9) for i in merged.nonzero().flatten()]
    assert max(columns) < 6  # in one window


@pytest.mark.parametrize('fusion', ['last_layer', 'cross_attention'])
def test_before_fusion_is_what_a_model_without_it_predicts(fusion):
    model = Segmentor(dict(**PRUNING, fusion=fusion)).eval()
    with torch.no_grad():
        for parameter in model.backbone.blocks[-1].parameters():
            parameter.mul_(4)  # so that the last block changes predictions
    trace = trace_image(model, item(), before=True)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        block = plain.backbone.blocks[-1]
        for part in (block.attn.proj, block.mlp.fc2) if fusion == 'last_layer' else (plain.backbone.late_return.proj,):
            part.weight.zero_(), part.bias.zero_()
    assert np.array_equal(trace.before['sem_seg'], trace_image(plain, item()).prediction['sem_seg'])
    assert np.array_equal(trace.prediction['sem_seg'], trace_image(model, item()).prediction['sem_seg'])
    assert not np.array_equal(trace.prediction['sem_seg'], trace.before['sem_seg'])


def test_without_a_fusion_nothing_is_told_of_before():
    for pruning in (None, dict(**PRUNING, fusion=None)):
        assert trace_image(Segmentor(pruning).eval(), item(), before=True).before is None


def test_a_random_pruner_prunes_the_same_each_time_and_other_tokens_of_another_image():
    model = Segmentor(dict(rate=8, pruner=dict(type='RandomPruner'))).eval()
    one, again, other = (trace_image(model, item(), seed).tokens.left for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_image_padding_and_share_of_tokens():
    model, image = Segmentor(PRUNING).eval(), item(2, (18, 21))
    model.data_preprocessor.pad_size_divisor = 12
    trace = trace_image(model, image)
    assert trace.image.shape == (18, 21, 3) and trace.grid == (6, 6)
    assert (trace.image[..., ::-1].transpose(2, 0, 1) == image['inputs'].numpy()).all()  # mmcv loads BGR
    assert trace.prediction['sem_seg'].shape == trace.truth['sem_seg'].shape == (18, 21)
    assert set(np.unique(trace.prediction['sem_seg'])) <= set(range(len(CLASSES)))
    counts = [0, *model.backbone.counts((6, 6)).values()]
    assert trace.entered[:4] == pytest.approx(1 - np.cumsum(counts)[:4] / 36) and trace.entered[4] == 1
