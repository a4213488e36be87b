"""Ranking, splitting and joining lose and repeat no token, whatever the scores are."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm.models.pruning.selection import Tokens, concat, rank, restore, split

# Few values, so that ties are the rule.
nasty = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.5, 3e38])


@st.composite
def score_tables(draw, max_tokens=12):
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, max_tokens))
    values = draw(st.lists(nasty, min_size=batch * count, max_size=batch * count))
    return torch.tensor(values).view(batch, count)


def tokens_of(scores, prefix):
    batch, count = scores.shape
    position = torch.arange(prefix + count).expand(batch, -1)
    return Tokens(torch.randn(batch, prefix + count, 2), position)


@given(score_tables())
def test_rank_is_a_permutation(scores):
    assert torch.equal(rank(scores).sort(dim=1).values, torch.arange(scores.shape[1]).expand_as(scores))


@given(score_tables())
def test_rank_sorts_with_nan_last_and_ties_in_order(scores):
    for row, order in zip(scores.tolist(), rank(scores).tolist()):
        worth = [-math.inf if math.isnan(s) else s for s in row]
        assert order == sorted(range(len(row)), key=lambda i: (-worth[i], i))


@given(score_tables(), st.integers(0, 3), st.data())
def test_split_sends_the_best_on_behind_the_prefix_in_the_order_in_which_they_were(scores, prefix, data):
    count = data.draw(st.integers(0, scores.shape[1] - 1))
    tokens = tokens_of(scores, prefix)
    kept, aside = split(tokens, scores, count, prefix)
    for b, order in enumerate(rank(scores).tolist()):
        positions = [*range(prefix), *(prefix + i for i in order)]
        assert kept.position[b].tolist() == sorted(positions[: len(positions) - count])
        assert aside.position[b].tolist() == positions[len(positions) - count :]
        for part in (kept, aside):
            assert torch.equal(part.x[b], tokens.x[b, part.position[b]])


@given(score_tables(), st.integers(0, 3), st.data())
def test_restore_undoes_any_number_of_splits(scores, prefix, data):
    tokens = whole = tokens_of(scores, prefix)
    aside = []
    for _ in range(data.draw(st.integers(0, 4))):
        patches = tokens.x.shape[1] - prefix
        again = scores.gather(1, tokens.position[:, prefix:] - prefix)
        tokens, removed = split(tokens, again, data.draw(st.integers(0, patches - 1)), prefix)
        aside.append(removed)
    order = torch.tensor(data.draw(st.permutations(range(whole.x.shape[1]))))
    assert torch.equal(restore([tokens, *aside], order), whole.x[:, order])


def test_concat_keeps_tokens_and_positions_together():
    a = Tokens(torch.zeros(1, 2, 1), torch.tensor([[2, 0]]))
    b = Tokens(torch.ones(1, 1, 1), torch.tensor([[1]]))
    joined = concat([a, b])
    assert joined.x.flatten().tolist() == [0, 0, 1] and joined.position.tolist() == [[2, 0, 1]]
