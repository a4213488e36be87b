"""SparseFeature puts every token where it belongs, and nothing else anywhere."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import PYTORCH_2_1
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm import SparseFeature
from cropr_mm.tokens import take_rows

grids = st.tuples(st.integers(1, 7), st.integers(1, 7))


def feature(grid, count, batch=2, channels=3, num_active=None):
    index = torch.stack([torch.randperm(grid[0] * grid[1])[:count] for _ in range(batch)])
    return SparseFeature(torch.randn(batch, count, channels), index, grid, num_active)


def place(sparse, count, base):
    """The map, one token at a time."""
    batch, _, channels = sparse.tokens.shape
    dense = base.view(-1, 1, 1).expand(batch, channels, *sparse.grid).clone()
    for b in range(batch):
        for k in range(count):
            row, column = divmod(int(sparse.index[b, k]), sparse.grid[1])
            dense[b, :, row, column] = sparse.tokens[b, k]
    return dense


@given(grids, st.data(), st.sampled_from(['exit', 'zero', 'tensor']))
def test_to_dense_places_each_token_by_its_index(grid, data, fill):
    count = data.draw(st.integers(1, grid[0] * grid[1]))
    active = data.draw(st.integers(1, count))
    sparse = feature(grid, count, num_active=active)
    base = torch.tensor([7.0, 8.0, 9.0]) if fill == 'tensor' else torch.zeros(3)
    dense = sparse.to_dense(base if fill == 'tensor' else fill)
    torch.testing.assert_close(dense, place(sparse, count if fill == 'exit' else active, base), rtol=0, atol=0)


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
    'tokens, index, words',
    [
        (torch.zeros(4, 2), None, r'tokens has shape \(4, 2\)'),
        (torch.zeros(1, 5, 2), None, r'5 tokens and no index on a 2×3 grid.* 6 positions'),
        (torch.zeros(1, 5, 2), torch.zeros(1, 4, dtype=torch.int64), r'index is torch.int64 of shape \(1, 4\)'),
        (torch.zeros(1, 5, 2), torch.zeros(1, 5, dtype=torch.int32), r'index is torch.int32'),
        (torch.zeros(1, 7, 2), torch.zeros(1, 7, dtype=torch.int64), r'7 tokens on a 2×3 grid; at most 6'),
    ],
)
def test_what_does_not_fit_the_grid_is_refused(tokens, index, words):
    with pytest.raises(ValueError, match=words):
        SparseFeature(tokens, index, (2, 3))


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
    sparse = SparseFeature(torch.zeros(2, 4, 3), torch.arange(4).expand(2, 4), (2, 3), 2, patch_size=16)
    assert repr(sparse) == (
        'SparseFeature(tokens=(2, 4, 3) float32, index=(2, 4) int64, prefix=None, grid=(2, 3), num_active=2, '
        'patch_size=16)'
    )


@pytest.mark.parametrize('again', [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_it_is_copied_and_pickled(again):
    sparse = feature((2, 3), 4, num_active=2)
    other = again(sparse)
    assert torch.equal(other.to_dense(), sparse.to_dense()) and other.num_active == 2


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
    def through(tokens, index):
        return SparseFeature(tokens, index, (2, 3), 2, patch_size=4).to_dense('zero')

    sparse = feature((2, 3), 4)
    compiled = torch.compile(through, fullgraph=True, backend='eager')(sparse.tokens, sparse.index)
    assert torch.equal(compiled, through(sparse.tokens, sparse.index))
