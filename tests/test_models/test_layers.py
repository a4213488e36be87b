"""The parts of the transformer, each against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import liven
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm.checkpoint import resize_position_embedding
from cropr_mm.models.archs import resolve_arch
from cropr_mm.models.layers import (
    Attention,
    Block,
    DropPath,
    PatchEmbed,
    SwiGLU,
)
from cropr_mm.models.rotary import apply_rotary, rotary_angles, rotary_table


def test_patch_embedding_is_a_linear_layer_on_each_patch():
    embed = PatchEmbed(4, 3, 8)
    images = torch.randn(2, 3, 8, 12)
    tokens, grid = embed(images)
    assert grid == (2, 3)
    patch = images[1, :, 4:8, 8:12].flatten()
    torch.testing.assert_close(tokens[1, 5], embed.proj.weight.flatten(1) @ patch + embed.proj.bias)


@given(st.integers(1, 13), st.integers(1, 13))
def test_sides_are_padded_with_zeros_to_whole_patches(height, width):
    embed = PatchEmbed(4, 1, 2)
    images = torch.randn(1, 1, height, width)
    tokens, grid = embed(images)
    assert grid == (math.ceil(height / 4), math.ceil(width / 4))
    padded = torch.zeros(1, 1, grid[0] * 4, grid[1] * 4)
    padded[..., :height, :width] = images
    torch.testing.assert_close(tokens, embed(padded)[0])


def test_position_embedding_of_the_same_grid_is_untouched():
    pos = torch.randn(1, 7, 4)
    assert resize_position_embedding(pos, (2, 3), (2, 3), 1) is pos


def test_resizing_positions_leaves_the_prefix_and_constants_alone():
    pos = torch.cat([torch.randn(1, 2, 4), torch.full((1, 9, 4), 3.0)], dim=1)
    resized = resize_position_embedding(pos, (3, 3), (5, 2), 2)
    assert torch.equal(resized[:, :2], pos[:, :2])
    torch.testing.assert_close(resized[:, 2:], torch.full((1, 10, 4), 3.0))


def test_resizing_positions_keeps_rows_and_columns_apart():
    rows = torch.arange(4.0).repeat_interleave(4)
    resized = resize_position_embedding(rows.view(1, 16, 1), (4, 4), (8, 2), 0).view(8, 2)
    assert torch.equal(resized[:, 0], resized[:, 1]) and (resized[:, 0].diff() > 0).all()


def rotation(row, column, head_dim, scale):
    """(head_dim, head_dim) matrix of EVA-02's axial rotary embedding for one token."""
    quarter = head_dim // 4
    matrix = torch.zeros(head_dim, head_dim, dtype=torch.float64)
    for pair in range(head_dim // 2):
        place, band = (row * scale[0], pair) if pair < quarter else (column * scale[1], pair - quarter)
        angle = place * 10000.0 ** (-band / quarter)
        c, s = math.cos(angle), math.sin(angle)
        matrix[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor([[c, -s], [s, c]])
    return matrix


def rotation_dinov3(row, column, head_dim, grid):
    """The same for DINOv3's."""
    quarter, half = head_dim // 4, head_dim // 2
    matrix = torch.zeros(head_dim, head_dim, dtype=torch.float64)
    for pair in range(half):
        place, side, band = (row, grid[0], pair) if pair < quarter else (column, grid[1], pair - quarter)
        angle = 2 * math.pi * (2 * (place + 0.5) / side - 1) / 100.0 ** (band / quarter)
        matrix[pair, pair] = matrix[pair + half, pair + half] = math.cos(angle)
        matrix[pair + half, pair] = math.sin(angle)
        matrix[pair, pair + half] = -math.sin(angle)
    return matrix


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('grid', [(4, 4), (2, 5), (1, 1)])
@pytest.mark.parametrize('kind', ['eva02', 'dinov3'])
def test_rotary_embedding_turns_pairs_by_row_and_column(kind, grid, dtype):
    x = torch.randn(2, 1 + grid[0] * grid[1], 3, 8).to(dtype)
    arch = resolve_arch(dict(family='vit', embed_dim=8, num_heads=1, rotary=kind, rotary_ref=4))
    turned = apply_rotary(x, rotary_angles(arch, grid, x.device), halves=kind == 'dinov3')
    expected = x.double().clone()
    for i in range(grid[0] * grid[1]):
        place = divmod(i, grid[1])
        if kind == 'eva02':
            matrix = rotation(*place, 8, (4 / grid[0], 4 / grid[1]))
        else:
            matrix = rotation_dinov3(*place, 8, grid)
        expected[:, 1 + i] = x[:, 1 + i].double() @ matrix.T
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(turned.double(), expected, rtol=0, atol=tolerance)


def test_rotary_angles_may_differ_per_sample():
    table = rotary_table((3, 3), 8, 3, 0, torch.device('cpu'))
    order = torch.stack([torch.randperm(9), torch.randperm(9)])
    x = torch.randn(2, 9, 1, 8)
    turned = apply_rotary(x, table[order])
    for b in range(2):
        torch.testing.assert_close(turned[b], apply_rotary(x[b : b + 1], table[order[b]])[0])


def test_rotary_products_depend_on_the_distance_alone():
    x = torch.randn(1, 1, 1, 8).expand(1, 16, 1, 8)
    turned = apply_rotary(x, rotary_table((4, 4), 8, 4, 0, x.device))[0, :, 0]
    products = (turned @ turned.T).view(4, 4, 4, 4)
    torch.testing.assert_close(products[0, 0, 2, 1], products[1, 2, 3, 3])


@pytest.mark.parametrize('family, fused', [('vit', True), ('eva02', True), ('eva02', False)])
def test_attention_is_softmax_of_scaled_products(family, fused):
    arch = resolve_arch(dict(family=family, embed_dim=16, depth=1, num_heads=2, qkv_fused=fused))
    attention = liven(Attention(arch))
    x = torch.randn(2, 5, 16)
    weights = dict(attention.named_parameters())
    zero = torch.zeros(16)
    if fused:
        matrix = weights['qkv.weight'].chunk(3)
        bias = weights['qkv.bias'].chunk(3) if family == 'vit' else (weights['q_bias'], zero, weights['v_bias'])
    else:
        matrix = [weights[f'{k}_proj.weight'] for k in 'qkv']
        bias = (weights['q_proj.bias'], zero, weights['v_proj.bias'])
    q, k, v = (x @ m.T + b for m, b in zip(matrix, bias))
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        a = (q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(8)).softmax(-1)
        heads.append(a @ v[..., h])
    expected = torch.cat(heads, -1) @ weights['proj.weight'].T + weights['proj.bias']
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('sub_norm', [True, False])
def test_swiglu_gates_the_value(packed, sub_norm):
    mlp = liven(SwiGLU(6, 10, packed, sub_norm))
    x = torch.randn(2, 3, 6)
    if packed:
        gate, value = mlp.fc1(x)[..., :10], mlp.fc1(x)[..., 10:]
    else:
        gate, value = mlp.fc1_g(x), mlp.fc1_x(x)
    hidden = gate * torch.sigmoid(gate) * value
    if sub_norm:
        hidden = F.layer_norm(hidden, (10,), mlp.norm.weight, mlp.norm.bias, 1e-6)
    torch.testing.assert_close(mlp(x), mlp.fc2(hidden))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3)).flatten(1)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == out[:, :1]).all() and abs(out.mean().item() - 1) < 0.05


def test_drop_path_rests_in_evaluation():
    x = torch.randn(2, 3, 4)
    assert DropPath(0.9).eval()(x) is x


def test_layer_scale_is_a_factor_per_channel_of_both_branches():
    arch = resolve_arch(dict(family='dinov2', embed_dim=16, num_heads=2, layer_scale=0.5))
    block, x = Block(arch, 0.0), torch.randn(2, 5, 16)
    assert block.ls1.gamma.tolist() == block.ls2.gamma.tolist() == [0.5] * 16
    with torch.no_grad():
        block.ls1.gamma.zero_()
        torch.testing.assert_close(block(x), x + 0.5 * block.mlp(block.norm2(x)))
        block.ls2.gamma.zero_()
    assert torch.equal(block(x), x)
