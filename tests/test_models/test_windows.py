"""Attention within windows against a mask over all tokens, and whole models against timm's."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import cropr, liven, small_vit
from hypothesis import given
from hypothesis import strategies as st
from parity import import_timm
from torch.utils.flop_counter import FlopCounterMode

from cropr_mm import CroprViT
from cropr_mm.models import windows as module
from cropr_mm.models.windows import (
    Windows,
    attend,
    count_windows,
    places_in_window,
    window_ids,
    windowed_attention,
)


def masked_attention(q, k, v, windows):
    """The definition, token by token."""
    prefix = windows.prefix
    out = torch.empty_like(q)
    for b, ids in enumerate(windows.window_id.tolist()):
        for i in range(q.shape[1]):
            near = [j for j in range(q.shape[1]) if i < prefix or j < prefix or ids[i - prefix] == ids[j - prefix]]
            shares = (torch.einsum('hd,khd->kh', q[b, i], k[b, near]) / math.sqrt(q.shape[-1])).softmax(0)
            out[b, i] = torch.einsum('kh,khd->hd', shares, v[b, near])
    return out


@st.composite
def kept_tokens(draw):
    """Windows of a grid of which a random set of tokens is left, another one in each sample."""
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    size, batch, prefix = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    count = draw(st.integers(1, grid[0] * grid[1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    ids = window_ids(grid, size)
    left = torch.stack([torch.randperm(len(ids), generator=generator)[:count] for _ in range(batch)])
    whole = count == len(ids) and all(side % size == 0 for side in grid)
    return Windows(ids[left].sort(dim=1).values, count_windows(grid, size), size**2, prefix, whole)


@given(kept_tokens())
def test_every_way_to_compute_it_gives_the_definition(windows):
    shape = (len(windows.window_id), windows.prefix + windows.window_id.shape[1], 2, 4)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    expected = masked_attention(q, k, v, windows)
    torch.testing.assert_close(windowed_attention(q, k, v, windows), expected)
    queries, expected = q[:, windows.prefix :], expected[:, windows.prefix :]
    torch.testing.assert_close(module._with_holes(queries, k, v, windows), expected)
    torch.testing.assert_close(attend(queries, k, v, module._same_window(windows)), expected)
    if not windows.prefix:
        torch.testing.assert_close(module._sequences(q, k, v, windows, module.attend_sequences), expected)


@given(kept_tokens())
def test_gradients_are_those_of_the_definition(windows):
    shape = (len(windows.window_id), windows.prefix + windows.window_id.shape[1], 1, 2)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(shape, dtype=torch.float64)
    expected = torch.autograd.grad((masked_attention(*parts, windows) * weight).sum(), parts)
    found = torch.autograd.grad((windowed_attention(*parts, windows) * weight).sum(), parts)
    torch.testing.assert_close(found, expected)
    q, prefix = parts[0], windows.prefix
    for attention in (module._with_holes, lambda *args: attend(*args[:3], module._same_window(windows))):
        out = attention(q[:, prefix:], *parts[1:], windows)
        rest = masked_attention(*parts, windows)[:, :prefix]
        found = torch.autograd.grad((torch.cat([rest, out], dim=1) * weight).sum(), parts)
        torch.testing.assert_close(found, expected)


def test_the_kernel_of_cuda_takes_what_it_is_given():
    kernel = pytest.importorskip('torch.nn.attention.varlen').varlen_attn
    windows = Windows(torch.tensor([[0, 0, 1, 3], [1, 1, 1, 1]]), 4, 4, 0, False)
    calls = []

    def watch(*arguments):
        calls.append(inspect.signature(kernel).bind(*arguments).arguments)
        return arguments[0]

    q = torch.randn(2, 4, 2, 8)
    module._sequences(q, q, q, windows, watch)
    (call,) = calls
    assert call['cu_seq_q'].tolist() == call['cu_seq_k'].tolist() == [0, 2, 3, 3, 4, 4, 8, 8, 8]
    assert call['cu_seq_q'].dtype == torch.int32 and call['max_q'] == call['max_k'] == 4
    assert call['query'].shape == call['value'].shape == (8, 2, 8)


@pytest.mark.parametrize(
    'capability, dtype, channels, fits',
    [
        ((8, 0), torch.bfloat16, 64, True),
        ((9, 0), torch.float16, 8, True),
        ((7, 5), torch.float16, 64, False),
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.float16, 12, False),
    ],
)
def test_cuda_takes_sequences_where_flash_attention_does(monkeypatch, capability, dtype, channels, fits):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    queries = SimpleNamespace(device=torch.device('cuda'), dtype=dtype, shape=(1, 4, 2, channels))
    assert module._flash_attention_fits(queries) == fits
    assert not module._flash_attention_fits(torch.zeros(1, 4, 2, 8).half())


def test_windows_count_in_raster_order_and_may_be_smaller_at_the_border():
    assert window_ids((3, 5), 2).view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert places_in_window((3, 5), 2).view(3, 5).tolist() == [[0, 1, 0, 1, 0], [2, 3, 2, 3, 2], [0, 1, 0, 1, 0]]
    assert count_windows((3, 5), 2) == 6


def plain_attention():
    if hasattr(torch.nn, 'attention'):  # PyTorch 2.3
        return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=True, enable_mem_efficient=False)


def pairs(attention, *arguments):
    """Pairs of query and key that an attention with 4 channels computes."""
    with FlopCounterMode(display=False) as counter, plain_attention():
        attention(*arguments)
    return counter.get_total_flops() / (2 * 2 * 4)


@pytest.mark.parametrize('kept', [4096, 3000, 1024, 128])
def test_cost_follows_the_tokens_that_are_kept(kept):
    ids = window_ids((64, 64), 16)[torch.randperm(4096)[:kept]].sort().values
    windows = Windows(ids[None], 16, 256, 0, kept == 4096)
    q = torch.randn(1, kept, 1, 4)
    assert pairs(windowed_attention, q, q, q, windows) == ids.bincount().square().sum()
    if kept < 4096:  # what compilers see: shapes that know the number of tokens alone
        compiled = min(kept**2, 16 * 256**2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, '_sequence_kernel', lambda q: None)
            assert pairs(windowed_attention, q, q, q, windows) == compiled


# --- whole models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('rotary', [None, 'eva02'])
@pytest.mark.parametrize('grid', [(8, 8), (4, 12)])
def test_dense_windowed_model_equals_timms(rotary, grid):
    timm = import_timm()
    settings = dict(embed_dim=64, depth=4, num_heads=2, window_size=4, global_attn_indexes=(1, 3))
    theirs = timm.models.vision_transformer_sam.VisionTransformerSAM(
        img_size=(grid[0] * 4, grid[1] * 4),
        patch_size=4,
        neck_chans=0,
        use_rope=rotary is not None,
        ref_feat_shape=((16, 16), (16, 16)),
        num_classes=0,
        norm_layer=lambda dim, **kwargs: torch.nn.LayerNorm(dim, eps=1e-6, **kwargs),
        **settings,
    ).eval()
    liven(theirs)
    arch = dict(embed_dim=64, depth=4, num_heads=2, class_token=False, rotary=rotary)
    state = theirs.state_dict()
    state['pos_embed'] = state['pos_embed'].flatten(1, 2)
    sides = (grid[0] * 4, grid[1] * 4)
    ours = CroprViT(arch, sides, 4, window_size=4, global_blocks=(1, -1), final_norm=False).eval()
    ours.load_state_dict({n: value for n, value in state.items() if not n.startswith(('neck.', 'rope_'))})
    images = torch.randn(2, 3, *sides)
    with torch.no_grad():
        (expected,) = theirs.forward_intermediates(images, indices=1, intermediates_only=True)
        (level,) = ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(level.to_dense(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(window_size=0), r'window_size=0; a positive integer'),
        (dict(window_size=2, global_blocks=(5,)), r'global_blocks=\(5,\); different ascending blocks of the 5'),
        (dict(global_blocks=(1,)), r'global_blocks=\(1,\) without window_size'),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        small_vit(**settings)


@pytest.mark.parametrize('family', ['vit', 'eva02'])
def test_compilers_see_one_graph_whatever_tokens_are_kept(family):
    """No shape depends on the data: what was captured for one batch is right for another."""
    if torch.__version__.startswith('2.1.'):
        pytest.skip('torch.export of PyTorch 2.1 cannot unpack a generator')
    settings = dict(window_size=3, global_blocks=(-1,), img_size=32, arch=dict(class_token=False))
    model = small_vit(family, dict(pruner=cropr(), rate=10), **settings).eval()

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = model

        def forward(self, images):
            return self.backbone(images)[0].to_dense()

    with torch.no_grad():
        captured = torch.export.export(Dense(), (torch.randn(2, 3, 32, 32),)).module()
        for _ in range(3):
            images = torch.randn(2, 3, 32, 32)
            torch.testing.assert_close(captured(images), Dense()(images))
