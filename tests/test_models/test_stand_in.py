"""The pyramid that gives the maps of another backbone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cropr_mm import SparseFeature, StandInPyramid, TokenReinsertion


def sizes(maps):
    return [tuple(level.shape[1:]) for level in maps]


@pytest.mark.parametrize(
    'channels, strides',
    [
        ((3, 5, 7, 9), (4, 8, 16, 32)),
        ((3, 5, 7, 9), (4, 8, 8, 8)),  # a dilated ResNet
        ((9, 7, 5, 4, 3), (16, 8, 4, 2, 1)),  # a UNet
        ((4, 4), (64, 128)),
    ],
)
def test_every_map_has_its_channels_and_stride(channels, strides):
    maps = StandInPyramid(16, channels, strides, in_stride=16)((torch.randn(2, 16, 8, 4),))
    assert sizes(maps) == [(c, -(-128 // s), -(-64 // s)) for c, s in zip(channels, strides)]
    assert all(len(level) == 2 and level.is_contiguous() for level in maps)


@pytest.mark.parametrize('side', [1, 3, 8])
def test_uneven_sides_round_up_as_in_convolutional_backbones(side):
    maps = StandInPyramid(16, (3, 3, 3), (4, 32, 64))((torch.randn(1, 16, side, side + 1),))
    assert sizes(maps) == [(3, -(-side * 16 // s), -(-(side + 1) * 16 // s)) for s in (4, 32, 64)]


def test_the_last_map_alone_is_read():
    neck, first, last = StandInPyramid(4, (4,), (8,)), torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    assert torch.equal(neck((first, last))[0], neck((last,))[0])


def test_a_level_equals_its_layers_written_out():
    neck = StandInPyramid(8, (5, 6), (4, 32))
    x = torch.randn(1, 8, 3, 5)

    def norm(m, y):
        return F.layer_norm(y.permute(0, 2, 3, 1), m.normalized_shape, m.weight, m.bias, 1e-6).permute(0, 3, 1, 2)

    up1, norm1, _, up2 = neck.scales['4']
    y = F.conv_transpose2d(F.gelu(norm(norm1, F.conv_transpose2d(x, up1.weight, up1.bias, 2))), up2.weight, up2.bias, 2)
    fine, coarse = neck((x,))
    torch.testing.assert_close(fine, norm(neck.levels[0][1], F.conv2d(y, neck.levels[0][0].weight)))
    y = F.max_pool2d(x, 2, ceil_mode=True)
    torch.testing.assert_close(coarse, norm(neck.levels[1][1], F.conv2d(y, neck.levels[1][0].weight)))


def test_maps_of_one_stride_share_its_scaling():
    neck = StandInPyramid(8, (4, 5, 6, 7), (4, 8, 8, 8))
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in neck.modules()) == 2 + 1


def test_every_parameter_is_used():
    neck = StandInPyramid(16, (4, 5, 6), (2, 12, 40))
    sum(level.square().sum() for level in neck((torch.randn(1, 16, 4, 4),))).backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize('stride', [12, 13, 14, 18, 20, 22])
def test_between_powers_of_two_cells_keep_their_stride_to_the_pixel(stride):
    """A map that holds the x coordinate of each cell's centre still holds it at another stride."""
    neck = StandInPyramid(1, (1,), (stride,))
    neck.levels[0] = nn.Identity()
    patches = 16 * (torch.arange(9.0) + 0.5)
    (level,) = neck((patches.expand(1, 1, 4, 9),))
    cells = stride * (torch.arange(level.shape[-1]) + 0.5)
    inside = cells <= patches[-1]
    torch.testing.assert_close(level[0, 0, 0].clamp(min=8)[inside], cells.clamp(min=8)[inside])
    assert inside.sum() >= 144 // stride - 1


@pytest.mark.parametrize('patches, expected', [(37, [130, 65, 32, 16]), (16, [56, 28, 14, 7])])
def test_patches_of_14_pixels_give_the_usual_strides(patches, expected):
    maps = StandInPyramid(16, (4,) * 4, (4, 8, 16, 32), in_stride=14)((torch.randn(1, 16, patches, patches),))
    assert [level.shape[-1] for level in maps] == expected


def test_readout_gives_each_map_with_its_mean():
    maps = StandInPyramid(4, (3, 5), (8, 16), readout=True)((torch.randn(2, 4, 3, 3),))
    assert [len(pair) for pair in maps] == [2, 2]
    for level, vector in maps:
        torch.testing.assert_close(vector, level.mean((2, 3)))


def test_evaluation_may_give_one_level_alone():
    neck = StandInPyramid(4, (3, 5), (8, 16), eval_level=1)
    x = (torch.randn(2, 4, 3, 3),)
    assert torch.equal(neck.eval()(x), neck.train()(x)[1])


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(out_channels=(), strides=()), r'out_channels=\(\) with strides=\(\)'),
        (dict(out_channels=(4,), strides=(4, 8)), r'one of out_channels for each of strides'),
        (dict(out_channels=(4, 0), strides=(4, 8)), r'positive numbers are expected'),
        (dict(out_channels=(4, 4), strides=(4, 0)), r'positive numbers are expected'),
        (dict(out_channels=(4,), strides=(8,), eval_level=1), r'eval_level=1; None or one of 0 to 0'),
        (dict(out_channels=(4,), strides=(1,)), r'in_channels=8 .* at least 16 are expected'),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        StandInPyramid(8, **arguments)


def test_sparse_features_are_refused():
    with pytest.raises(TypeError, match='StandInPyramid got a SparseFeature; it expects a tuple of maps'):
        StandInPyramid(8, (4,), (8,))((SparseFeature(torch.randn(1, 4, 8), None, (2, 2)),))


def test_it_stands_after_reinsertion():
    maps = TokenReinsertion()((SparseFeature(torch.randn(1, 4, 8), None, (2, 2)),))
    assert sizes(StandInPyramid(8, (4,), (8,))(maps)) == [(4, 4, 4)]
