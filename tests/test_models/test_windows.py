"""Attention within windows against a mask over all tokens, and whole models against timm's."""

import inspect
import math

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
    window_numbers,
    windowed_attention,
)


def sequence_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What torch.nn.attention.varlen.varlen_attn computes, sequence by sequence."""
    out, bounds = torch.full_like(query, math.nan), cu_seq_q.tolist()
    assert cu_seq_q.dtype == torch.int32 and bounds == cu_seq_k.tolist() and bounds[-1] == len(query)
    for start, end in zip(bounds, bounds[1:]):
        assert end - start <= min(max_q, max_k)
        if end > start:
            q, k, v = (t[None, start:end] for t in (query, key, value))
            out[start:end] = attend(q, k, v)[0]
    return out


def masked_attention(q, k, v, windows):
    """The definition, token by token."""
    prefix = windows.prefix
    out = torch.empty_like(q)
    for b, numbers in enumerate(windows.number.tolist()):
        for i in range(q.shape[1]):
            near = [
                j for j in range(q.shape[1]) if i < prefix or j < prefix or numbers[i - prefix] == numbers[j - prefix]
            ]
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
    numbers = window_numbers(grid, size)
    left = torch.stack([torch.randperm(len(numbers), generator=generator)[:count] for _ in range(batch)])
    whole = count == len(numbers) and all(side % size == 0 for side in grid)
    return Windows(numbers[left].sort(dim=1).values, count_windows(grid, size), size**2, prefix, whole)


@given(kept_tokens())
def test_every_way_to_compute_it_gives_the_definition(windows):
    shape = (len(windows.number), windows.prefix + windows.number.shape[1], 2, 4)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    expected = masked_attention(q, k, v, windows)
    torch.testing.assert_close(windowed_attention(q, k, v, windows), expected)
    queries, expected = q[:, windows.prefix :], expected[:, windows.prefix :]
    for chunk in (1, 3, windows.capacity):
        torch.testing.assert_close(module._chunked(queries, k, v, windows, chunk), expected)
    torch.testing.assert_close(attend(queries, k, v, module._same_window(windows)), expected)
    if not windows.prefix:
        torch.testing.assert_close(module._fused(q, k, v, windows, sequence_kernel), expected)


@given(kept_tokens())
def test_gradients_are_those_of_the_definition(windows):
    shape = (len(windows.number), windows.prefix + windows.number.shape[1], 1, 2)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(shape, dtype=torch.float64)
    expected = torch.autograd.grad((masked_attention(*parts, windows) * weight).sum(), parts)
    found = torch.autograd.grad((windowed_attention(*parts, windows) * weight).sum(), parts)
    torch.testing.assert_close(found, expected)


def test_the_fused_kernel_is_for_half_precision_on_cuda_alone():
    q = torch.randn(1, 4, 1, 8)
    assert module._fused_kernel(q) is None and module._fused_kernel(q.bfloat16()) is None


def test_the_kernel_of_this_pytorch_takes_what_it_is_given():
    kernel = pytest.importorskip('torch.nn.attention.varlen').varlen_attn
    windows = Windows(torch.tensor([[0, 0, 1, 3]]), 4, 4, 0, False)
    seen = []

    def watch(*arguments):
        seen.append(arguments)
        return arguments[0]

    q = torch.randn(1, 4, 2, 8)
    module._fused(q, q, q, windows, watch)
    call = inspect.signature(kernel).bind(*seen[0]).arguments
    assert call['cu_seq_q'].tolist() == [0, 2, 3, 3, 4] and call['max_q'] == call['max_k'] == 4
    assert call['query'].shape == call['value'].shape == (4, 2, 8)


def test_windows_count_in_raster_order_and_may_be_smaller_at_the_border():
    assert window_numbers((3, 5), 2).view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert places_in_window((3, 5), 2).view(3, 5).tolist() == [[0, 1, 0, 1, 0], [2, 3, 2, 3, 2], [0, 1, 0, 1, 0]]
    assert count_windows((3, 5), 2) == 6


@pytest.mark.parametrize('kept', [4096, 3000, 2048, 1024, 512, 128])
def test_cost_follows_the_tokens_that_are_kept(kept):
    """Fewer operations than attention among all kept tokens, and than whole windows with holes in them."""
    numbers = window_numbers((64, 64), 16)
    number = numbers[torch.randperm(4096)[:kept]].sort().values[None]
    windows = Windows(number, 16, 256, 0, kept == 4096)
    q = torch.randn(1, kept, 1, 4)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        windowed_attention(q, q, q, windows)
    pairs = counter.get_total_flops() / (4 * 4)  # two products of 4 channels
    assert pairs <= min(kept**2, (kept + 16 * 64) * 256)
    assert kept == 4096 or pairs <= 1.25 * 4096 * 256


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
