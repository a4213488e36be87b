"""Expedit, against clustering and reconstruction written out in loops; nothing is lost, what is equal comes back."""

import math

import pytest
import torch
from helpers import small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cropr_mm import Context, ExpeditReducer
from cropr_mm.models.pruning.expedit import divide
from cropr_mm.tokens import Tokens, restore

EXPEDIT = dict(pruner=dict(type='ExpeditReducer'), round_to=1)
sides = st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda grid: grid[0] * grid[1] > 1)


def tokens_of(grid, batch, prefix, share, channels=4):
    """Tokens at some positions of the grid, in any order."""
    patches = grid[0] * grid[1]
    kept = max(2, round(share * patches))
    position = torch.stack([torch.randperm(patches)[:kept] for _ in range(batch)])
    every = torch.cat([patches + torch.arange(prefix).expand(batch, -1), position], dim=1)
    return Tokens(torch.randn(batch, prefix + kept, channels).double(), every, prefix)


def regions(positions, count, grid, padding=None):
    """Of one image, region by region: the positions in it, in the order of the path."""
    (height, width), side = grid, max(1, round(math.sqrt(grid[0] * grid[1] / count)))
    path = []
    for n, top in enumerate(range(0, height, side)):
        columns = range(width) if n % 2 == 0 else reversed(range(width))
        path += [r * width + c for c in columns for r in range(top, min(top + side, height))]
    path = [p for p in path if p in positions]
    own = [p for p in path if padding is None or not padding[p]]
    pads = [p for p in path if p not in own]
    for_pads = 0 if not pads else count if not own else min(max(count - len(own), 1), count - 1)
    if not for_pads:
        own, pads = own + pads, []
    found = []
    for part, number in [(own, count - for_pads), (pads, for_pads)]:
        starts = [i * len(part) // number for i in range(number)] + [len(part)]
        found += [part[a:b] for a, b in zip(starts, starts[1:])]
    return found


def reference(tokens, b, count, grid, neighbors, iterations, temperature, padding=None):
    """One image: values of the centres by position, and ``{position: [(owner, weight), …]}`` of all others."""
    value = dict(zip(tokens.position[b].tolist(), tokens.patches[b].double()))
    found = regions(set(value), count, grid, padding)
    seeds = [region[len(region) // 2] for region in found]
    unit = {p: v / v.norm() for p, v in value.items()}
    share = {p: [float(p in region) for region in found] for p in value}

    def similarities():
        centers = [sum(share[p][k] * unit[p] for p in value) for k in range(count)]
        centers = [c / c.norm() for c in centers]
        alike = {p: [-float((unit[p] - c).square().sum()) / temperature for c in centers] for p in value}
        for p in value if padding is not None else ():
            if any(padding[s] == padding[p] for s in seeds):
                alike[p] = [a if padding[s] == padding[p] else -math.inf for a, s in zip(alike[p], seeds)]
            else:
                alike[p] = [0.0] * count
        return alike

    for _ in range(iterations):
        share = {p: torch.tensor(a).double().softmax(0).tolist() for p, a in similarities().items()}
    alike = similarities()
    size = [sum(share[p][k] for p in value) for k in range(count)]
    centers = {s: sum(share[p][k] * value[p] for p in value) / size[k] for k, s in enumerate(seeds)}
    owners = {}
    for p in set(value) - set(seeds):
        best = sorted(range(count), key=lambda k: -alike[p][k])[:neighbors]
        weights = torch.tensor([alike[p][k] for k in best]).double().softmax(0).tolist()
        owners[p] = [(seeds[k], w) for k, w in zip(best, weights)]
    return centers, owners


@settings(max_examples=80)
@given(sides, st.integers(1, 3), st.integers(0, 2), st.sampled_from([1.0, 0.6]), st.booleans(), st.data())
def test_it_equals_the_loops(grid, batch, prefix, held, padded, data):
    """Any grid, tokens that are left in any order, any count; each image as by itself."""
    tokens = tokens_of(grid, batch, prefix, held)
    current = tokens.position.shape[1]
    count = data.draw(st.integers(1, current - 1))
    options = dict(neighbors=data.draw(st.integers(1, 4)), iterations=data.draw(st.integers(1, 3)), temperature=0.5)
    padding = torch.rand(batch, grid[0] * grid[1]) < 0.4 if padded else None
    left, (removed,) = ExpeditReducer(embed_dim=4, grid=grid, patch_size=4, **options)(
        tokens, count, Context(grid, padding)
    )
    assert torch.equal(left.prefix, tokens.prefix) and left.size is None
    assert left.position.shape[1] == current - count and left.x.dtype == tokens.x.dtype
    for b in range(batch):
        pads = None if padding is None else padding[b].tolist()
        centers, owners = reference(tokens, b, current - count, grid, padding=pads, **options)
        assert left.position[b].tolist() == list(centers)
        torch.testing.assert_close(left.patches[b], torch.stack(list(centers.values())), rtol=1e-4, atol=1e-5)
        assert sorted(removed.position[b].tolist()) == sorted(owners)
        for p, owner, weight in zip(*(t[b].tolist() for t in (removed.position, removed.owner, removed.weight))):
            found, expected = dict(zip(owner, weight)), dict(owners[p])
            found = [found.get(o, 0.0) for o in expected]
            torch.testing.assert_close(found, list(expected.values()), rtol=1e-3, atol=1e-4)


@given(sides, st.data())
def test_regions_are_as_large_and_hold_every_token_once(grid, data):
    tokens = tokens_of(grid, 2, 0, data.draw(st.sampled_from([1.0, 0.6])))
    current = tokens.position.shape[1]
    count = data.draw(st.integers(1, current))
    region, seed = divide(tokens.position, count, grid, None)
    for b in range(2):
        sizes = region[b].bincount(minlength=count).tolist()
        assert len(sizes) == count and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
        assert region[b, seed[b]].tolist() == list(range(count))


def test_regions_of_a_square_are_squares():
    region, seed = divide(torch.arange(64)[None], 16, (8, 8), None)
    cells = region[0].view(4, 2, 4, 2).transpose(1, 2).flatten(2)
    assert (cells == cells[..., :1]).all() and len(cells[..., 0].unique()) == 16
    assert len(seed[0].unique()) == 16


@settings(max_examples=40)
@given(sides, st.integers(1, 40), st.floats(0.01, 1), st.data())
def test_equal_tokens_come_back_exactly(grid, count, temperature, data):
    tokens = tokens_of(grid, 2, 1, 1.0)
    tokens = tokens._replace(x=torch.randn(2, 1, 4).expand(-1, tokens.x.shape[1], -1))
    reducer = ExpeditReducer(embed_dim=4, grid=grid, patch_size=4, temperature=temperature)
    left, removed = reducer(tokens, min(count, grid[0] * grid[1] - 1), Context(grid))
    order = torch.tensor([grid[0] * grid[1], *range(grid[0] * grid[1])])
    assert torch.equal(restore(left, removed, order).x, tokens.x)


def test_groups_of_equal_tokens_come_back():
    """Two halves, each of equal tokens: every position comes back as its half."""
    x = torch.tensor([[3.0, 0], [0, 2.0]]).repeat_interleave(18, 0)[None]
    tokens = Tokens(x, torch.arange(36)[None])
    left, removed = ExpeditReducer(embed_dim=2, grid=(6, 6), patch_size=4)(tokens, 31, Context((6, 6)))
    torch.testing.assert_close(restore(left, removed, torch.arange(36)).x, x)


@given(sides, st.data())
def test_sizes_add_up(grid, data):
    tokens = tokens_of(grid, 2, 1, 1.0)
    size = torch.randint(1, 5, tokens.x.shape[:2]).float()
    count = data.draw(st.integers(1, tokens.position.shape[1] - 1))
    left, _ = ExpeditReducer(embed_dim=4, grid=grid, patch_size=4)(tokens._replace(size=size), count, Context(grid))
    assert torch.equal(left.size[:, 0], size[:, 0])
    torch.testing.assert_close(left.size.sum(dim=1), size.sum(dim=1))


def test_padding_has_one_centre_of_its_own():
    x, padding = torch.randn(1, 36, 4), torch.zeros(1, 36, dtype=torch.bool)
    padding.view(6, 6)[:, 4:] = True
    reducer = ExpeditReducer(embed_dim=4, grid=(6, 6), patch_size=4)
    left, (removed,) = reducer(Tokens(x, torch.arange(36)[None]), 28, Context((6, 6), padding))
    assert padding[0, left.position[0]].sum() == 1
    for p, owner, weight in zip(removed.position[0], removed.owner[0], removed.weight[0]):
        assert (padding[0, owner] == padding[0, p])[weight > 0].all()
    changed = x.masked_fill(padding.unsqueeze(-1), 7.0)
    other, _ = reducer(Tokens(changed, torch.arange(36)[None]), 28, Context((6, 6), padding))
    own = ~padding[0, left.position[0]]
    torch.testing.assert_close(other.x[0, own], left.x[0, own])


def test_the_only_centre_left_takes_padding_too():
    padding = (torch.arange(36) % 6 >= 3)[None]
    region, seed = divide(torch.arange(36)[None], 1, (6, 6), padding)
    assert (region == 0).all() and seed.shape == (1, 1)


@pytest.mark.parametrize('fusion', ['last_layer', 'cross_attention', None])
def test_every_position_comes_back(fusion):
    """With a fusion and without, a later reducer takes what an earlier one has made."""
    model = small_vit(pruning=dict(EXPEDIT, keep={0: 0.5, 2: 0.2}, fusion=fusion)).eval()
    (level,) = model(torch.randn(2, 3, 24, 24))
    dense = level.to_dense()
    assert dense.isfinite().all() and len(dense[0].flatten(1).unique(dim=1).T) > 7


@pytest.mark.parametrize(
    'setting, words',
    [
        (dict(neighbors=0), r'pruning\.pruner\.neighbors=0; a positive integer is expected'),
        (dict(iterations=0.5), r'pruning\.pruner\.iterations=0\.5; a positive integer is expected'),
        (dict(temperature=0), r'pruning\.pruner\.temperature=0; '),
    ],
)
def test_settings_out_of_range_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        small_vit(pruning=dict(pruner=dict(type='ExpeditReducer', **setting), rate=6))
