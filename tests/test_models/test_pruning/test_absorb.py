"""Where pruned tokens go, against loops; nothing is lost, padding adds nothing."""

import pytest
import torch
from helpers import small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cropr_mm.models.pruning import Context
from cropr_mm.models.pruning.absorb import into_nearest, into_one
from cropr_mm.tokens import Tokens, restore

PRUNING = dict(pruner=dict(type='VariancePruner'), rate=6, round_to=1)


def draw(data, padded):
    batch, patches, prefix = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 12)), data.draw(st.integers(0, 2))
    x = torch.randn(batch, prefix + patches, 4, dtype=torch.float64)
    every = torch.cat([torch.arange(patches, patches + prefix), torch.arange(patches)]).expand(batch, -1)
    padding = torch.rand(batch, patches) < 0.3 if padded else None
    scores = torch.randn(batch, patches)
    if padding is not None:
        scores = scores.masked_fill(padding, -torch.inf)
    tokens = Tokens(x, every, prefix)
    return tokens, scores, torch.rand(batch, patches), data.draw(st.integers(1, patches - 1)), padding


@settings(max_examples=60)
@given(st.booleans(), st.data())
def test_each_pruned_token_joins_the_kept_one_most_like_it(padded, data):
    tokens, scores, _, count, padding = draw(data, padded)
    left, removed = into_nearest(tokens, scores, count, Context((1, scores.shape[1]), padding))
    for b in range(len(scores)):
        order = sorted(range(scores.shape[1]), key=lambda i: -scores[b, i].item())
        kept, pruned = order[: len(order) - count], order[len(order) - count :]
        sums, sizes = {i: tokens.patches[b, i].clone() for i in kept}, dict.fromkeys(kept, 1)
        joins = {}
        for i in pruned:
            alike = [float(torch.cosine_similarity(tokens.patches[b, i], tokens.patches[b, j], dim=0)) for j in kept]
            joins[i] = kept[max(range(len(kept)), key=alike.__getitem__)]
            if padding is None or not padding[b, i]:
                sums[joins[i]] += tokens.patches[b, i]
                sizes[joins[i]] += 1
        assert dict(zip(removed.position[b].tolist(), removed.owner[b].tolist())) == joins
        assert left.position[b].tolist() == sorted(kept)
        assert left.size[b, tokens.num_prefix :].tolist() == [sizes[i] for i in sorted(kept)]
        expected = torch.stack([sums[i] / sizes[i] for i in sorted(kept)])
        torch.testing.assert_close(left.patches[b], expected, rtol=1e-5, atol=1e-6)  # summed in float32


@settings(max_examples=60)
@given(st.booleans(), st.data())
def test_one_token_takes_the_mean_and_the_rest_come_back_as_they_were(padded, data):
    tokens, scores, weights, count, padding = draw(data, padded)
    left, removed = into_one(tokens, scores, count, Context((1, scores.shape[1]), padding), lambda s: weights)
    prefix, patches = tokens.num_prefix, scores.shape[1]
    everywhere = restore(left, [removed], torch.cat([torch.arange(patches, patches + prefix), torch.arange(patches)]))
    for b in range(len(scores)):
        order = sorted(range(patches), key=lambda i: -scores[b, i].item())
        kept, fused = order[: patches - count - 1], order[patches - count - 1 :]
        counted = [i for i in fused if padding is None or not padding[b, i]] or fused
        share = [1.0 if padding is not None and counted == fused and padding[b, fused[0]] else weights[b, i].item()
                 for i in counted]  # fmt: skip
        mean = sum(tokens.patches[b, i] * s for i, s in zip(counted, share)) / sum(share)
        expected = tokens.patches[b].clone()
        expected[fused[0]] = mean
        assert left.position[b].tolist() == sorted([*kept, fused[0]])
        torch.testing.assert_close(everywhere.patches[b], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(everywhere.prefix[b], tokens.prefix[b])


@pytest.mark.parametrize('absorb', ['nearest', 'fused_token'])
def test_what_is_equal_comes_back_exactly(absorb):
    value = torch.randn(4).double()
    tokens = Tokens(value.expand(2, 9, 4).clone(), torch.arange(9).expand(2, -1))
    reduce = dict(nearest=into_nearest, fused_token=into_one)[absorb]
    left, removed = reduce(tokens, torch.rand(2, 9), 5, Context((3, 3)), torch.exp)
    torch.testing.assert_close(restore(left, [removed], torch.arange(9)).x, tokens.x)
    if left.size is not None:
        assert left.size.sum(dim=1).tolist() == [9, 9]


@pytest.mark.parametrize('absorb', ['nearest', 'fused_token'])
@pytest.mark.parametrize('fusion', ['last_layer', None])
def test_models_prune_train_and_give_each_position_once(absorb, fusion):
    model = small_vit(pruning=dict(PRUNING, absorb=absorb, fusion=fusion))
    images = torch.randn(3, 3, 24, 24)
    images[1, :, :, 12:] = 0
    feature = model(images)[0]
    assert feature.num_held == 36 and feature.to_dense().isfinite().all()
    feature.to_dense().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.blocks.parameters())
    model.eval()
    with torch.no_grad():
        whole = model(images)[0].to_dense()
        for i in range(3):
            torch.testing.assert_close(model(images[i : i + 1])[0].to_dense(), whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_evit_weighs_by_the_attention():
    from cropr_mm import AttentionPruner

    attention = torch.tensor([[0.1, 0.4, 0.2]])
    assert torch.equal(AttentionPruner(4, (1, 3), 16).weights(attention), attention)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(absorb='near'), r"pruning\.absorb='near'; None, 'nearest', 'fused_token' are valid"),
        (dict(absorb=['nearest']), r"pruning\.absorb=\['nearest'\]; None, 'nearest'"),
        (dict(absorb='nearest', pruner=dict(type='ToMeReducer')), r"pruning\.absorb='nearest' with .*ToMeReducer"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        small_vit(pruning={**PRUNING, **settings})


def test_windows_and_merging_do_not_go_together():
    with pytest.raises(ValueError, match=r'VariancePruner.* with window_size=2; None is expected'):
        small_vit(pruning=dict(PRUNING, absorb='nearest'), window_size=2)
    model = small_vit(pruning=dict(PRUNING, absorb='fused_token'), window_size=2).eval()
    assert model(torch.randn(2, 3, 24, 24))[0].num_held == 36
