"""ALGM, against the algorithm written out in loops: cells first, then matching; nothing is lost."""

import itertools
import math

import pytest
import torch
from helpers import shared_positions, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cropr_mm import ALGMReducer, Context
from cropr_mm.tokens import Tokens, restore

ALGM = dict(pruner=dict(type='ALGMReducer'), round_to=1)


def cosine(a, b):
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def kinds(positions, padding):
    """1 where all are padding, 0 where none is, None where some are."""
    found = {bool(padding is not None and padding[p]) for p in positions}
    return None if len(found) == 2 else float(found.pop())


def reference(values, grid, count, padding=None):
    """One image: ``groups`` of positions that share a token, by the position at which the token stands."""
    (height, width), groups = grid, {p: [p] for p in range(len(values))}
    cells = []
    for i, j in itertools.product(range(height // 2), range(width // 2)):
        cell = [(2 * i + a) * width + 2 * j + b for a in (0, 1) for b in (0, 1)]
        alike = sum(cosine(values[a], values[b]) for a, b in itertools.combinations(cell, 2)) / 6
        cells.append(({None: -math.inf, 1: 2.0}.get(kinds(cell, padding), alike), cell))
    cells.sort(key=lambda cell: -cell[0])
    for _, cell in cells[: count // 3]:
        groups[cell[0]] = cell
        for p in cell[1:]:
            del groups[p]
            count -= 1
    metric = {p: values[members].mean(0) for p, members in groups.items()}
    while count:
        rows = sorted(groups)
        edges = []
        for a in rows[::2]:
            alike = [(2.0 if kind else cosine(metric[a], metric[b])) if kind is not None else -math.inf
                     for b in rows[1::2] for kind in [kinds([a, b], padding)]]  # fmt: skip
            edges.append((max(alike), a, rows[1 + 2 * alike.index(max(alike))]))
        edges.sort(key=lambda edge: -edge[0])
        for _, a, b in edges[: min(count, len(rows) // 2)]:
            groups[b] = groups[b] + groups.pop(a)
        count -= min(count, len(rows) // 2)
    return groups


def every_token(x, prefix=0):
    """Tokens (B, P + N, D) in raster order."""
    count = x.shape[1] - prefix
    return Tokens(x, torch.cat([count + torch.arange(prefix), torch.arange(count)]).expand(len(x), -1), prefix)


sides = st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda grid: grid[0] * grid[1] > 1)


@settings(max_examples=80)
@given(sides, st.integers(1, 3), st.integers(0, 2), st.booleans(), st.data())
def test_the_first_reducer_equals_the_loops(grid, batch, prefix, padded, data):
    """Any grid and count: none of a whole cell, more than all cells have, odd sides; each image as by itself."""
    patches = grid[0] * grid[1]
    count = data.draw(st.integers(1, patches - 1))
    tokens = every_token(torch.randn(batch, prefix + patches, 4).double(), prefix)
    padding = torch.rand(batch, patches) < 0.4 if padded else None
    left, removed = ALGMReducer(4, grid, 4)(tokens, count, Context(grid, padding))
    assert left.position.shape[1] == patches - count and torch.equal(left.prefix, tokens.prefix)
    assert torch.equal(left.size[:, prefix:].sum(dim=1), torch.full((batch,), float(patches)))
    shared = shared_positions(removed, patches)
    back = restore(left, removed, tokens.all_positions[0])
    for b in range(batch):
        groups = reference(tokens.patches[b], grid, count, None if padding is None else padding[b])
        assert sorted(left.position[b].tolist()) == sorted(groups)
        for row, p in enumerate(left.position[b].tolist()):
            assert {q for q in range(patches) if shared[b, q] == p} == set(groups[p])
            mean = tokens.patches[b, groups[p]].mean(0)
            torch.testing.assert_close(left.patches[b, row], mean, rtol=1e-5, atol=1e-6)  # summed in float32
            assert left.size[b, prefix + row] == len(groups[p])
            assert torch.equal(back.patches[b, groups[p]], left.patches[b, row].expand(len(groups[p]), -1))


def test_whatever_order_the_tokens_lie_in():
    grid, x = (4, 6), torch.randn(1, 24, 8)
    tokens = every_token(x)
    mixed = tokens.take(torch.randperm(24)[None])
    (plain, _), (other, _) = (ALGMReducer(8, grid, 4)(t, 9, Context(grid)) for t in (tokens, mixed))
    order = other.position.argsort(dim=1)
    assert torch.equal(other.position.gather(1, order), plain.position)
    torch.testing.assert_close(other.x[:, order[0]], plain.x)


def test_later_reducers_merge_tokens_of_the_whole_image():
    """Without all positions there are no cells: the two that are alike merge, wherever they are."""
    x = torch.eye(8)[[0, 1, 2, 3, 4, 5, 6, 0, 7]] * torch.arange(1.0, 10)[:, None]
    position = torch.tensor([[0, 1, 2, 3, 7, 8, 9, 12, 15]])
    left, (removed,) = ALGMReducer(8, (4, 4), 4)(Tokens(x[None], position), 1, Context((4, 4)))
    assert removed.position.tolist() == [[0]] and removed.owner.tolist() == [[12]]
    torch.testing.assert_close(left.x[0, left.position[0].tolist().index(12)], (x[0] + x[7]) / 2)


def test_sizes_weigh_the_mean_of_a_cell():
    tokens = every_token(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]))._replace(size=torch.tensor([[1.0, 2, 3, 4]]))
    left, _ = ALGMReducer(1, (2, 2), 4)(tokens, 3, Context((2, 2)))
    assert left.x.tolist() == [[[3.0]]] and left.size.tolist() == [[10.0]]


@pytest.mark.parametrize('family', ['vit', 'dinov2'])
def test_patches_that_are_equal_come_back_as_in_the_dense_model(family):
    """One patch everywhere and no positional embedding: proportional attention makes merging change nothing."""
    model = small_vit(family, dict(ALGM, keep={0: 0.5, 2: 0.14})).eval()
    model.pos_embed.data.zero_()
    dense = small_vit(family).eval()
    dense.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 4, 4).repeat(1, 1, 6, 6)
    torch.testing.assert_close(model(images)[0].to_dense(), dense(images)[0].to_dense(), rtol=1e-4, atol=1e-5)
