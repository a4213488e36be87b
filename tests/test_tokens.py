"""Tokens are ranked, split, merged and put back without losing or repeating one, and end where they belong."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import PYTORCH_2_1, shared_positions
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm import Removed, SparseFeature, Tokens
from cropr_mm.tokens import rank, restore, split, take_rows

grids = st.tuples(st.integers(1, 7), st.integers(1, 7))
# Few values, so that ties are the rule.
nasty = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.5, 3e38])

# --- ranking, splitting, restoring ----------------------------------------------------------------------------------


@st.composite
def score_tables(draw, max_tokens=12):
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, max_tokens))
    values = draw(st.lists(nasty, min_size=batch * count, max_size=batch * count))
    return torch.tensor(values).view(batch, count)


def tokens_of(scores, prefix, size=False):
    batch, count = scores.shape
    positions = torch.cat([torch.arange(count, count + prefix), torch.arange(count)]).expand(batch, -1)
    sizes = torch.rand(batch, prefix + count) if size else None
    return Tokens(torch.randn(batch, prefix + count, 2), positions, prefix, sizes)


@given(score_tables())
def test_rank_is_a_permutation(scores):
    assert torch.equal(rank(scores).sort(dim=1).values, torch.arange(scores.shape[1]).expand_as(scores))


@given(score_tables())
def test_rank_sorts_with_nan_last_and_ties_in_order(scores):
    for row, order in zip(scores.tolist(), rank(scores).tolist()):
        worth = [-math.inf if math.isnan(s) else s for s in row]
        assert order == sorted(range(len(row)), key=lambda i: (-worth[i], i))


@given(score_tables(), st.integers(0, 3), st.booleans(), st.booleans(), st.data())
def test_split_keeps_the_best_after_the_prefix_as_they_lay_or_by_score(scores, prefix, size, in_order, data):
    count = data.draw(st.integers(0, scores.shape[1] - 1))
    tokens = tokens_of(scores, prefix, size)
    kept, pruned = split(tokens, scores, count, in_order)
    for b, order in enumerate(rank(scores).tolist()):
        best = order[: len(order) - count]
        assert kept.position[b].tolist() == (sorted(best) if in_order else best)
        assert pruned.position[b].tolist() == order[len(order) - count :]
        assert torch.equal(kept.x[b], torch.cat([tokens.prefix[b], tokens.patches[b, kept.position[b]]]))
        assert torch.equal(pruned.x[b], tokens.patches[b, pruned.position[b]])
    assert kept.num_prefix == prefix
    rows = torch.cat([torch.arange(prefix).expand(len(scores), -1), prefix + kept.position], dim=1)
    assert not size or torch.equal(kept.size, tokens.size.gather(1, rows))


@given(score_tables(), st.integers(0, 3), st.data())
def test_restore_undoes_any_number_of_splits(scores, prefix, data):
    tokens = whole = tokens_of(scores, prefix)
    removed = []
    for _ in range(data.draw(st.integers(0, 4))):
        again = scores.gather(1, tokens.position)
        tokens, part = split(tokens, again, data.draw(st.integers(0, again.shape[1] - 1)))
        removed.append(part)
    order = torch.tensor(data.draw(st.permutations(range(scores.shape[1]))))
    every = torch.cat([whole.all_positions[0, :prefix], order])
    restored = restore(tokens, removed, every)
    assert torch.equal(restored.prefix, whole.prefix) and torch.equal(restored.patches, whole.patches[:, order])
    assert torch.equal(restored.position, order.expand_as(whole.position))


@st.composite
def histories(draw):
    """Current tokens of one sample after steps that prune or merge, and the position that each position ends at."""
    count = draw(st.integers(2, 12))
    current, removed, source = list(range(count)), [], dict(zip(range(count), range(count)))
    values = torch.randn(count, 2)
    for _ in range(draw(st.integers(1, 4))):
        if len(current) < 2:
            break
        gone = draw(st.lists(st.sampled_from(current), min_size=1, max_size=len(current) - 1, unique=True))
        current = [p for p in current if p not in gone]
        owners = [draw(st.sampled_from(current)) for _ in gone] if draw(st.booleans()) else None
        where = torch.tensor([gone])
        removed.append(
            Removed(where, x=values[where]) if owners is None else Removed(where, owner=torch.tensor([owners]))
        )
        for p, owner in zip(gone, owners or gone):
            source[p] = owner
    return Tokens(values[None, current], torch.tensor([current])), removed, source, values


def end_of(source, position):
    while source[position] != position:
        position = source[position]
    return position


@given(histories())
def test_positions_come_back_with_their_own_value_or_with_that_of_the_token_they_share(history):
    tokens, removed, source, values = history
    ends = [end_of(source, p) for p in range(len(source))]
    assert torch.equal(restore(tokens, removed, torch.arange(len(source))).x[0], values[ends])
    feature = SparseFeature(tokens.x, tokens.position, (1, len(source)), tuple(removed))
    assert torch.equal(feature.to_dense()[0, :, 0].T, values[ends])
    current = set(tokens.position[0].tolist())
    known = torch.tensor([end in current for end in ends])
    assert torch.equal(feature.to_dense('zero')[0, :, 0].T, values[ends] * known[:, None])
    assert torch.equal(feature.to_dense(torch.ones(2))[0, :, 0].T, torch.where(known[:, None], values[ends], 1.0))
    torch.testing.assert_close(feature.mean()[0], values[ends][known].mean(0))
    assert not removed or shared_positions(removed, len(source))[0].tolist() == ends


@st.composite
def mixtures(draw):
    """As histories, where some positions have several owners: ``owners[p]`` is the list of ``(owner, weight)``."""
    count = draw(st.integers(2, 12))
    current, removed, owners = list(range(count)), [], {}
    values = torch.randn(count, 2).double()
    for _ in range(draw(st.integers(1, 4))):
        if len(current) < 2:
            break
        gone = draw(st.lists(st.sampled_from(current), min_size=1, max_size=len(current) - 1, unique=True))
        current = [p for p in current if p not in gone]
        each, where = draw(st.integers(0, 3)), torch.tensor([gone])
        if each == 0:
            removed.append(Removed(where, x=values[where]))
            continue
        owner = torch.tensor([[[draw(st.sampled_from(current)) for _ in range(each)] for _ in gone]])
        weight = torch.rand(owner.shape).double().softmax(dim=-1)
        removed.append(Removed(where, owner=owner, weight=weight) if each > 1 else Removed(where, owner=owner[..., 0]))
        for p, o, w in zip(gone, owner[0].tolist(), weight[0].tolist()):
            owners[p] = list(zip(o, w))
    return Tokens(values[None, current], torch.tensor([current])), removed, owners, values


@given(mixtures())
def test_positions_with_several_owners_come_back_with_their_weighted_mean(history):
    tokens, removed, owners, values = history
    current = set(tokens.position[0].tolist())

    def shares(p):
        if p not in owners:
            return [(p, 1.0)]
        return [(end, w * share) for o, w in owners[p] for end, share in shares(o)]

    def expected(p, fill=None):
        return sum(w * (values[e] if fill is None or e in current else fill) for e, w in shares(p))

    every = range(len(values))
    restored = restore(tokens, removed, torch.arange(len(values))).x[0]
    torch.testing.assert_close(restored, torch.stack([expected(p) for p in every]))
    feature = SparseFeature(tokens.x, tokens.position, (1, len(values)), tuple(removed)).clone()
    assert feature.complete == (not any(part.x is not None for part in removed))
    for name, fill in [('exit', None), ('zero', torch.zeros(2).double()), (torch.ones(2).double(),) * 2]:
        dense = feature.to_dense(name)[0, :, 0].T
        torch.testing.assert_close(dense, torch.stack([expected(p, fill) for p in every]))
    known = [(e, w) for p in every for e, w in shares(p) if e in current]
    mean = sum(w * values[e] for e, w in known) / sum(w for _, w in known)
    torch.testing.assert_close(feature.mean()[0], mean, rtol=1e-6, atol=1e-6)  # sizes are float32


@given(st.integers(1, 5), st.floats(-1e4, 1e4, width=32))
def test_equal_owners_come_back_exactly(each, value):
    x = torch.full((1, 5, 2), value)
    weight = torch.rand(1, 3, each).softmax(dim=-1)
    part = Removed(torch.tensor([[5, 6, 7]]), owner=torch.randint(5, (1, 3, each)), weight=weight)
    restored = restore(Tokens(x, torch.arange(5)[None]), [part], torch.arange(8)).x
    assert torch.equal(restored, torch.full((1, 8, 2), value))


# --- on the grid ----------------------------------------------------------------------------------------------------


def feature(grid, count, batch=2, channels=3, pruned=0):
    """Tokens at random positions, of which the last ``pruned`` are no longer current."""
    position = torch.stack([torch.randperm(grid[0] * grid[1])[:count] for _ in range(batch)])
    tokens = torch.randn(batch, count, channels)
    kept = count - pruned
    removed = (Removed(position[:, kept:], tokens[:, kept:]),) if pruned else ()
    return SparseFeature(tokens[:, :kept].clone(), position[:, :kept], grid, removed)


def place(sparse, base, exits):
    """The map, one token at a time."""
    batch, _, channels = sparse.tokens.shape
    dense = base.view(-1, 1, 1).expand(batch, channels, *sparse.grid).clone()
    parts = [(sparse.position, sparse.tokens), *((part.position, part.x) for part in sparse.removed if exits)]
    for position, tokens in parts:
        for b in range(batch):
            for k in range(position.shape[1]):
                row, column = divmod(int(position[b, k]), sparse.grid[1])
                dense[b, :, row, column] = tokens[b, k]
    return dense


@given(grids, st.data(), st.sampled_from(['exit', 'zero', 'tensor']))
def test_to_dense_places_each_token_by_its_position(grid, data, fill):
    count = data.draw(st.integers(1, grid[0] * grid[1]))
    sparse = feature(grid, count, pruned=data.draw(st.integers(0, count - 1)))
    base = torch.tensor([7.0, 8.0, 9.0]) if fill == 'tensor' else torch.zeros(3)
    dense = sparse.to_dense(base if fill == 'tensor' else fill)
    torch.testing.assert_close(dense, place(sparse, base, fill == 'exit'), rtol=0, atol=0)


def test_complete_tokens_in_raster_order_are_not_copied():
    tokens = torch.randn(2, 6, 4)
    assert SparseFeature(tokens, None, (2, 3)).to_dense().data_ptr() == tokens.data_ptr()


def test_channels_of_a_view_stand_in_raster_order():
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert SparseFeature(tokens, None, (2, 3)).to_dense()[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize('count', [12, 9])
def test_gradient_reaches_each_token_once(count):
    sparse = feature((3, 4), count)
    sparse.tokens.requires_grad_()
    sparse.to_dense().sum().backward()
    assert torch.equal(sparse.tokens.grad, torch.ones_like(sparse.tokens))


def test_mask_token_gets_a_gradient_per_empty_position():
    token = torch.zeros(3, requires_grad=True)
    feature((3, 4), 9).to_dense(token).sum().backward()
    assert token.grad.tolist() == [6, 6, 6]  # 3 empty positions in each of 2 samples


@pytest.mark.parametrize('length, taken', [(5, 3), (1, 1), (4, 0)])
def test_take_rows_is_a_gather(length, taken):
    x = torch.randn(3, length, 2)
    rows = torch.randint(length, (3, taken))
    assert torch.equal(take_rows(x, rows), x.gather(1, rows[..., None].expand(-1, -1, 2)))


def test_take_rows_reads_a_view_that_is_not_contiguous():
    x = torch.randn(2, 4, 6).transpose(1, 2)
    rows = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(take_rows(x, rows)[1, 0], x[1, 2])


@pytest.mark.parametrize(
    'tokens, position, words',
    [
        (torch.zeros(4, 2), None, r'tokens has shape \(4, 2\)'),
        (torch.zeros(1, 5, 2), None, r'5 tokens and no position on a 2×3 grid; without positions all 6 tokens'),
        (torch.zeros(1, 5, 2), torch.zeros(1, 4, dtype=torch.int64), r'position is torch.int64 of shape \(1, 4\)'),
        (torch.zeros(1, 5, 2), torch.zeros(1, 5, dtype=torch.int32), r'position is torch.int32'),
        (torch.zeros(1, 7, 2), torch.zeros(1, 7, dtype=torch.int64), r'7 tokens on a 2×3 grid; at most 6'),
    ],
)
def test_what_does_not_fit_the_grid_is_refused(tokens, position, words):
    with pytest.raises(ValueError, match=words):
        SparseFeature(tokens, position, (2, 3))


def test_unknown_fill_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"fill='mean'.*'exit', 'zero'"):
        SparseFeature(torch.zeros(1, 6, 2), None, (2, 3)).to_dense('mean')


# --- it is no tensor ------------------------------------------------------------------------------------------------

REMEDY = r"maps come from TokenReinsertion, which is first in neck \(neck=\[dict\(type='TokenReinsertion'\), …\]\)"


@pytest.mark.parametrize(
    'use',
    [
        lambda f: torch.nn.Conv2d(3, 3, 1)(f),
        lambda f: torch.nn.Linear(3, 3)(f),
        lambda f: F.interpolate(f, scale_factor=2),
        lambda f: torch.cat([f, f]),
    ],
)
def test_torch_functions_are_told_what_is_missing(use):
    with pytest.raises(TypeError, match=rf'got a SparseFeature; .*{REMEDY}'):
        use(feature((2, 3), 4))


def test_attributes_of_tensors_are_told_what_is_missing():
    with pytest.raises(AttributeError, match=rf"SparseFeature has no attribute 'shape'; .*{REMEDY}"):
        feature((2, 3), 4).shape  # noqa: B018
    assert not hasattr(feature((2, 3), 4), 'size')


def test_repr_is_short():
    removed = (Removed(torch.tensor([[4], [5]]), torch.zeros(2, 1, 3)),)
    sparse = SparseFeature(torch.zeros(2, 4, 3), torch.arange(4).expand(2, 4), (2, 3), removed, patch_size=16)
    assert repr(sparse) == (
        'SparseFeature(tokens=(2, 4, 3) float32, position=(2, 4) int64, prefix=None, grid=(2, 3), removed=1, '
        'patch_size=16)'
    )


@pytest.mark.parametrize('again', [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_it_is_copied_and_pickled(again):
    sparse = feature((2, 3), 4, pruned=2)
    other = again(sparse)
    assert torch.equal(other.to_dense(), sparse.to_dense()) and other.num_held == 4


def test_what_walks_through_outputs_still_does(tmp_path):
    """DDP looks for tensors in outputs, FSDP casts them, autocast and forward hooks let them pass."""
    from torch.distributed.utils import _apply_to_tensors
    from torch.nn.parallel.distributed import _find_tensors

    sparse = feature((2, 3), 4)
    assert len(list(_find_tensors((sparse,)))) == 2
    if not PYTORCH_2_1:  # which sets the fields of data classes, frozen or not; outputs of what it wraps here are maps
        halves = _apply_to_tensors(lambda t: t.half() if t.is_floating_point() else t, (sparse,))
        assert halves[0].tokens.dtype in (torch.float16, torch.float32)
    identity = torch.nn.Identity()
    identity.register_forward_hook(lambda module, args, output: output)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert identity(sparse) is sparse
    torch.save(sparse, tmp_path / 'feature.pt')
    assert torch.load(tmp_path / 'feature.pt', weights_only=False).grid == (2, 3)


@pytest.mark.skipif(PYTORCH_2_1, reason='the compiler of PyTorch 2.1 makes no data classes')
def test_a_compiled_model_makes_and_reads_it():
    def through(tokens, position):
        removed = (Removed(position[:, 2:], tokens[:, 2:]),)
        return SparseFeature(tokens[:, :2], position[:, :2], (2, 3), removed, patch_size=4).to_dense('zero')

    sparse = feature((2, 3), 4)
    compiled = torch.compile(through, fullgraph=True, backend='eager')(sparse.tokens, sparse.position)
    assert torch.equal(compiled, through(sparse.tokens, sparse.position))
