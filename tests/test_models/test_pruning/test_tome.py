"""ToMe, against the algorithm written out in loops; nothing is lost, and what is equal comes back exactly."""

import math

import pytest
import torch
from helpers import SMALL, shared_positions, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cropr_mm import RandomPruner, ToMeReducer
from cropr_mm.models.layers import Block
from cropr_mm.models.pruning import Context
from cropr_mm.models.pruning.tome import matching, merge
from cropr_mm.tokens import Removed, Tokens, restore

TOME = dict(pruner=dict(type='ToMeReducer'), round_to=1)


def reference(metric, values, sizes, pairs, padding=None):
    """Bipartite soft matching of one image, pair by pair: {row that goes: row it joins}, values and sizes after it."""
    unit = [v / v.norm() if v.norm() else v for v in metric.double()]
    edges = []
    for a in range(0, len(unit), 2):
        best = None
        for b in range(1, len(unit), 2):
            alike = float(unit[a] @ unit[b])
            if padding is not None:
                alike = 2.0 if padding[a] and padding[b] else -math.inf if padding[a] != padding[b] else alike
            if best is None or alike > best[0]:
                best = (alike, b)
        edges.append((best[0], a, best[1]))
    edges.sort(key=lambda edge: -edge[0])
    joins = {a: b for _, a, b in edges[:pairs]}
    sums, sizes = [v * s for v, s in zip(values.double(), sizes)], list(sizes)
    for a, b in joins.items():
        sums[b], sizes[b] = sums[b] + sums[a], sizes[b] + sizes[a]
    stay = [i for i in range(len(unit)) if i not in joins]
    return joins, torch.stack([sums[i] / sizes[i] for i in stay]), [sizes[i] for i in stay], stay


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(2, 13), st.integers(0, 2), st.booleans(), st.data())
def test_a_step_equals_the_loops(batch, patches, prefix, padded, data):
    pairs = data.draw(st.integers(1, patches // 2))
    x, metric = torch.randn(batch, prefix + patches, 4).double(), torch.randn(batch, patches, 3)
    size = torch.randint(1, 5, (batch, prefix + patches)).float()
    padding = torch.rand(batch, patches) < 0.4 if padded else None
    every = torch.cat([torch.arange(patches, patches + prefix), torch.arange(patches)]).expand(batch, -1)
    left, removed = merge(Tokens(x, every, prefix, size), *matching(metric, pairs, padding))
    for b in range(batch):
        joins, values, sizes, stay = reference(
            metric[b], x[b, prefix:], size[b, prefix:].tolist(), pairs, None if padding is None else padding[b]
        )
        assert dict(zip(removed.position[b].tolist(), removed.owner[b].tolist())) == joins
        assert left.position[b].tolist() == stay and left.size[b, prefix:].tolist() == sizes
        torch.testing.assert_close(left.patches[b], values, rtol=1e-5, atol=1e-6)  # summed in float32
        assert torch.equal(left.prefix[b], x[b, :prefix])


@settings(max_examples=40)
@given(st.sampled_from(list(SMALL)), st.integers(1, 2), st.integers(1, 11), st.sampled_from(['last_layer', None]))
def test_no_position_is_lost_and_sizes_add_up(family, batch, rate, fusion):
    model = small_vit(family, dict(TOME, rate=rate if fusion else min(rate, 8), fusion=fusion)).eval()
    seen, sizes = [], []
    forward = ToMeReducer.forward

    def watched(self, tokens, count, context):
        left, removed = forward(self, tokens, count, context)
        sizes.append(left.size[:, left.num_prefix :].sum(dim=1))
        seen.extend(removed)
        return left, removed

    for pruner in model.pruners.values():
        pruner.forward = watched.__get__(pruner)
    (level,) = model(torch.randn(batch, 3, 24, 24))
    assert level.complete and level.to_dense().shape == (batch, 16, 6, 6)
    assert all(torch.equal(total, torch.full_like(total, 36)) for total in sizes) and sizes
    shared = shared_positions(seen, 36)
    gone = torch.cat([part.position for part in seen], dim=1)
    assert all(len(set(row.tolist())) == gone.shape[1] for row in gone)
    assert not any(set(shared[b].tolist()) & set(gone[b].tolist()) for b in range(batch))  # each ends at a token


def test_equal_tokens_merge_and_come_back_exactly():
    values = torch.randn(3, 8)
    x = values[[0, 1, 2, 0, 1, 2]][None]  # rows 0 and 3, 1 and 4, 2 and 5
    tokens, removed = Tokens(x, torch.arange(6)[None]), []
    (tokens, part) = merge(tokens, *matching(x, 3))
    removed.append(part)
    assert tokens.size.tolist() == [[2, 2, 2]]
    torch.testing.assert_close(restore(tokens, removed, torch.arange(6)).x, x)


@pytest.mark.parametrize('family', ['vit', 'eva02'])
def test_a_merged_token_counts_as_often_as_its_parts(family):
    """Proportional attention: a block on merged equal tokens says what it says on all of them."""
    block: Block = small_vit(family).eval().blocks[1]
    x = torch.randn(1, 5, 16)
    whole = block(x[:, [0, 1, 1, 1, 2, 3, 3, 4]])
    merged = block(x, size=torch.tensor([[1.0, 3, 1, 2, 1]]))
    torch.testing.assert_close(merged, whole[:, [0, 1, 4, 5, 7]], rtol=1e-4, atol=1e-5)


def test_more_than_half_are_merged_in_several_rounds():
    model = small_vit(pruning=dict(TOME, keep={1: 0.1})).eval()
    counts = model.schedule.counts((6, 6), 1)
    (level,) = model(torch.randn(2, 3, 24, 24))
    assert counts[0] > 18 and level.complete


def test_padding_merges_with_padding():
    metric = torch.randn(1, 8, 3)
    padding = torch.tensor([[False, False, True, True, True, True, False, False]])
    source, target, _ = matching(metric, 2, padding)
    assert set(source[0].tolist()) == {2, 4} and set(target[0].tolist()) <= {3, 5}


def test_what_merges_goes_with_what_prunes():
    """Sizes go along when a pruner takes rows."""
    tokens = Tokens(torch.randn(1, 4, 8), torch.arange(4)[None], 0, torch.tensor([[2.0, 1, 1, 1]]))
    pruner = RandomPruner(8, (2, 2), 4)
    kept, (removed,) = pruner(tokens, 1, Context((2, 2)))
    assert kept.size[0].tolist() == [2.0 if p == 0 else 1.0 for p in kept.position[0].tolist()]
    assert isinstance(removed, Removed)
