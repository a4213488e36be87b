"""Selectors that learn nothing, each against its definition."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from helpers import small_vit, tokens_at
from mmengine.registry import MODELS

from cropr_mm import Context, RandomPruner, VariancePruner
from cropr_mm.models.archs import resolve_arch
from cropr_mm.models.layers import Attention
from cropr_mm.models.pruning.baselines import class_attention
from cropr_mm.models.rotary import Rotary, rotary_angles

GRID, DIM = (3, 4), 8


def index_of(x):
    return torch.arange(12).expand(len(x), -1)


def test_random_selection_needs_no_parameters_and_no_hook():
    model = small_vit(pruning=dict(pruner=dict(type='RandomPruner'), rate=8, deploy=True)).train()
    for _ in range(2):
        model(torch.randn(1, 3, 24, 24))[0].tokens.sum().backward()
    assert not list(model.pruners.parameters()) and model.aux_losses([]) == {}


def test_random_scores_follow_torchs_seed_and_differ_per_sample():
    pruner = MODELS.build(dict(type='RandomPruner', embed_dim=DIM, grid=GRID, patch_size=4))
    assert isinstance(pruner, RandomPruner)
    x = torch.zeros(2, 12, DIM)
    torch.manual_seed(1)
    first = pruner.score(tokens_at(x, index_of(x)), Context(GRID))
    torch.manual_seed(1)
    assert torch.equal(first, pruner.score(tokens_at(x, index_of(x)), Context(GRID))) and not torch.equal(
        first[0], first[1]
    )


def test_random_selection_takes_every_token_equally_often():
    pruner = RandomPruner(DIM, GRID, 4)
    x = torch.zeros(4000, 12, DIM)
    best = pruner.score(tokens_at(x, index_of(x)), Context(GRID)).topk(6).indices
    share = F.one_hot(best, 12).sum(dim=(0, 1)) / 4000
    assert (share - 0.5).abs().max() < 0.04  # 5 standard deviations


def test_variance_is_that_of_the_channels():
    x = torch.randn(2, 12, DIM)
    scores = VariancePruner(DIM, GRID, 4).score(tokens_at(x, index_of(x)), Context(GRID))
    expected = [[statistics.variance(token.tolist()) for token in sample] for sample in x]
    torch.testing.assert_close(scores, torch.tensor(expected))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_variance_is_float32_also_under_autocast(dtype):
    x = torch.randn(2, 12, DIM).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert VariancePruner(DIM, GRID, 4).score(tokens_at(x, index_of(x)), Context(GRID)).dtype == torch.float32


def test_class_attention_is_the_first_row_of_the_softmax():
    attention = Attention(resolve_arch(dict(embed_dim=DIM, depth=3, num_heads=2)))
    x, seen = torch.randn(2, 14, DIM), []
    attention(x, watch=lambda q, k: seen.append(class_attention(q, k, 2)))
    q, k, _ = (attention.qkv(x)[..., i * DIM : (i + 1) * DIM].unflatten(-1, (2, -1)) for i in range(3))
    for b in range(2):
        rows = [(k[b, :, h] @ q[b, 0, h] / math.sqrt(4)).softmax(0) for h in range(2)]
        torch.testing.assert_close(seen[0][b], (rows[0] + rows[1])[2:] / 2)


@pytest.mark.parametrize('family', ['vit', 'eva02'])
def test_watching_the_attention_changes_no_output(family):
    images = torch.randn(2, 3, 24, 24)
    model = small_vit(family).eval()
    x, grid = model.embed(images)
    angles, seen = rotary_angles(model.arch, grid, x.device), []
    rotary = None if angles is None else Rotary(angles)
    plain, watched = model.blocks[0](x, rotary), model.blocks[0](x, rotary, watch=lambda q, k: seen.append(q))
    assert torch.equal(plain, watched) and len(seen) == 1


def test_attention_without_a_class_token_is_refused():
    with pytest.raises(ValueError, match=r"pruner.type='AttentionPruner' reads .*arch.class_token=False"):
        small_vit(pruning=dict(pruner=dict(type='AttentionPruner'), rate=8), arch=dict(class_token=False))
