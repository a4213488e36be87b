"""From tokens to maps: reinsertion and the pyramid."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import PYTORCH_2_1, cropr, small_vit
from mmengine.registry import MODELS
from torch import nn

from cropr_mm import Removed, SimpleFeaturePyramid, SparseFeature, TokenPooling, TokenReinsertion
from cropr_mm.models.necks.pyramid import Stretch


def half_full():
    """2 × 2 grid: one current token at 3, one pruned at 1, two that nobody holds."""
    pruned = Removed(torch.tensor([[1]]), torch.tensor([[[7.0, 8.0]]]))
    return SparseFeature(torch.tensor([[[5.0, 6.0]]]), torch.tensor([[3]]), (2, 2), (pruned,))


@pytest.mark.parametrize(
    'fill, expected', [('exit', [0, 7, 0, 5]), ('zero', [0, 0, 0, 5]), ('mask_token', [9, 9, 9, 5])]
)
def test_reinsertion_fills_as_it_says(fill, expected):
    neck = TokenReinsertion(fill, embed_dim=2)
    if fill == 'mask_token':
        nn.init.constant_(neck.mask_token, 9)
    (dense,) = neck((half_full(),))
    assert dense[0, 0].flatten().tolist() == expected


def test_only_the_mask_token_is_learned():
    assert not list(TokenReinsertion('exit').parameters())
    neck = TokenReinsertion('mask_token', embed_dim=2)
    neck((half_full(),))[0].sum().backward()
    assert neck.mask_token.grad.tolist() == [3, 3]


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(fill='mean'), r"fill='mean' is unknown; valid are 'exit', 'zero', 'mask_token'"),
        (dict(fill='mask_token'), r"fill='mask_token' with embed_dim=None"),
    ],
)
def test_reinsertion_refuses_bad_settings(arguments, words):
    with pytest.raises(ValueError, match=words):
        TokenReinsertion(**arguments)


@pytest.mark.parametrize(
    'features, found',
    [((torch.zeros(1, 2, 3, 3),), 'Tensor'), (torch.zeros(1, 2, 3, 3), 'Tensor'), (half_full(), 'SparseFeature')],
)
def test_reinsertion_says_what_it_expects(features, found):
    with pytest.raises(TypeError, match=f'got a {found}; it expects the tuple of SparseFeatures of a CroprViT'):
        TokenReinsertion()(features)


def with_class_token():
    return replace(half_full(), prefix=torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))


@pytest.mark.parametrize('mode, expected', [('cls', [1, 2]), ('avg', [5, 6]), ('all', [3, 4])])
def test_pooling_gives_a_vector_for_each_image(mode, expected):
    """The [CLS] token, not the register after it; or the mean of the current tokens, without the pruned one, and
    without or with the prefix."""
    (vector,) = TokenPooling(mode)((with_class_token(),))
    assert vector.tolist() == [expected]


def test_average_of_a_complete_level_is_the_mean_of_its_map():
    feature = SparseFeature(torch.randn(2, 4, 3), None, (2, 2))
    torch.testing.assert_close(TokenPooling('avg')((feature,))[0], feature.to_dense().mean((2, 3)))


def test_pooling_can_normalise_afterwards():
    feature = SparseFeature(torch.randn(2, 4, 3), None, (2, 2))
    neck = TokenPooling('avg', norm=True, embed_dim=3)
    nn.init.constant_(neck.norm.weight, 2.0)
    expected = F.layer_norm(feature.tokens.mean(1), (3,), eps=1e-6) * 2
    torch.testing.assert_close(neck((feature,))[0], expected)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(mode='max'), r"mode='max' is unknown; valid are 'cls', 'avg', 'all'"),
        (dict(norm=True), r'norm=True with embed_dim=None'),
    ],
)
def test_pooling_refuses_bad_settings(arguments, words):
    with pytest.raises(ValueError, match=words):
        TokenPooling(**arguments)


def test_pooling_says_what_is_missing():
    with pytest.raises(ValueError, match=r"TokenPooling\(mode='cls'\): the backbone has no .CLS. token; .*mode='avg'"):
        TokenPooling()((half_full(),))
    with pytest.raises(TypeError, match=r'TokenPooling got a Tensor; it expects .*neck=\[dict\(type="TokenPooling"\)'):
        TokenPooling()((torch.zeros(1, 2, 3, 3),))


@pytest.mark.parametrize(
    'in_stride, strides', [(16, (4, 8, 16, 32, 64)), (8, (4, 8, 16, 32, 64)), (16, (32, 64)), (16, (64,)), (16, (16,))]
)
@pytest.mark.parametrize('side', [1, 3, 8])
def test_pyramid_has_a_map_for_each_stride(in_stride, strides, side):
    neck = SimpleFeaturePyramid(16, 6, in_stride, strides)
    maps = neck((torch.randn(1, 16, side, side + 1),))
    expected = [tuple(-(-s * in_stride // stride) for s in (side, side + 1)) for stride in strides]
    assert [tuple(m.shape) for m in maps] == [(1, 6, *size) for size in expected]


def test_pyramid_level_equals_its_layers_written_out():
    neck = SimpleFeaturePyramid(8, 4, 16, (4,))
    x = torch.randn(1, 8, 3, 3)
    up1, norm1, _, up2, lateral, norm2, smooth, norm3 = neck.levels[0]

    def norm(m, y):
        return F.layer_norm(y.permute(0, 2, 3, 1), m.normalized_shape, m.weight, m.bias, 1e-6).permute(0, 3, 1, 2)

    y = F.gelu(norm(norm1, F.conv_transpose2d(x, up1.weight, up1.bias, 2)))
    y = F.conv_transpose2d(y, up2.weight, up2.bias, 2)
    y = norm(norm2, F.conv2d(y, lateral.weight))
    y = norm(norm3, F.conv2d(y, smooth.weight, padding=1))
    torch.testing.assert_close(neck((x,))[0], y)


def test_coarse_levels_subsample_the_one_before():
    maps = SimpleFeaturePyramid(4, 4, 16, (32, 64, 128))((torch.randn(1, 4, 16, 16),))
    assert torch.equal(maps[2], maps[1][:, :, ::2, ::2]) and torch.equal(maps[1], maps[0][:, :, ::2, ::2])


def test_every_layer_of_the_pyramid_is_used():
    neck = SimpleFeaturePyramid(16, 4)
    sum(m.square().sum() for m in neck((torch.randn(1, 16, 4, 4),))).backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize('strides', [(), (8, 4), (8, 8), (0,), (-4,)])
def test_pyramid_refuses_strides_that_do_not_ascend(strides):
    with pytest.raises(ValueError, match='in_stride=16; positive and ascending strides'):
        SimpleFeaturePyramid(8, 4, 16, strides)


@pytest.mark.parametrize('in_stride', [8, 14, 16])
@pytest.mark.parametrize('strides', [(4, 8, 16, 32, 64), (8, 16, 32, 64, 128), (16, 64), (12, 48)])
def test_cells_have_the_stride_that_anchors_assume(in_stride, strides):
    """A map that holds the x coordinate of each cell's centre still holds it at every level, whatever the patch."""
    neck = SimpleFeaturePyramid(32, 4, in_stride, strides)
    for level in neck.levels:
        for i, layer in enumerate(level):
            if isinstance(layer, nn.ConvTranspose2d):
                level[i] = nn.Upsample(scale_factor=2, mode='bilinear')
            elif isinstance(layer, nn.MaxPool2d):
                level[i] = nn.AvgPool2d(layer.kernel_size)
            elif not isinstance(layer, Stretch):
                level[i] = nn.Identity()
    cells = 8 * 64 // in_stride
    x = (in_stride * (torch.arange(float(cells)) + 0.5)).expand(1, 32, 16, cells)
    for i, (stride, level) in enumerate(zip(strides, neck((x,)))):
        centres = stride * (torch.arange(level.shape[-1]) + 0.5)
        assert abs(level.shape[-1] - cells * in_stride / stride) <= 1
        if i < len(neck.levels):  # coarser ones subsample, as ViTDet's do
            inside = (centres > 40) & (centres < cells * in_stride - 80)  # no border in it
            torch.testing.assert_close(level[0, 0, 0][inside], centres[inside])


PYRAMIDS = [
    dict(type='SimpleFeaturePyramid', in_channels=16, out_channels=4),
    dict(type='StandInPyramid', in_channels=16, out_channels=[4], strides=[4]),
]


@pytest.mark.parametrize('pyramid', PYRAMIDS, ids=lambda pyramid: pyramid['type'])
def test_a_pyramid_for_other_patches_is_an_error_that_says_what_to_write(pyramid):
    """As a model of mmseg or mmdet calls its neck, without a hook."""
    words = rf'{pyramid["type"]}.in_stride=16, but backbone.patch_size=4, .* set in_stride=4 in neck'
    model, images = small_vit(pruning=dict(pruner=dict(type='RandomPruner'), rate=4)), torch.randn(1, 3, 24, 24)
    with pytest.raises(ValueError, match=words):
        MODELS.build([dict(type='TokenReinsertion'), pyramid])(model(images))
    neck = MODELS.build([dict(type='TokenReinsertion'), dict(pyramid, in_stride=4)])
    assert neck(model(images))[0].shape[-1] == 6


@pytest.mark.skipif(PYTORCH_2_1, reason='PyTorch 2.1 makes no graph of a whole pruned model')
def test_the_stride_stays_out_of_graphs():
    """Tracing and export of backbone and neck together, where nothing can be noted on a tensor."""
    neck = [dict(type='TokenReinsertion'), dict(PYRAMIDS[0], in_stride=4)]
    pruning = dict(pruner=cropr(), rate=4)
    model = nn.Sequential(small_vit(pruning=pruning), MODELS.build(neck)).eval()
    images = torch.randn(2, 3, 24, 24)
    expected = model(images)
    for graph in (
        torch.export.export(model, (images,)).module(),
        torch.compile(model, fullgraph=True, backend='eager'),
        torch.jit.trace(model, images),
    ):
        for ours, theirs in zip(graph(images), expected):
            torch.testing.assert_close(ours, theirs)


def test_too_few_channels_to_halve_are_named():
    words = r'in_channels=3 with strides=\(4, 8\) and in_stride=16; at least 4 are expected'
    with pytest.raises(ValueError, match=words):
        SimpleFeaturePyramid(3, 4, 16, (4, 8))
    (level,) = SimpleFeaturePyramid(4, 6, 16, (4,))((torch.randn(1, 4, 2, 2),))
    assert level.shape == (1, 6, 8, 8)


def test_pyramid_refuses_sparse_features():
    with pytest.raises(TypeError, match='SimpleFeaturePyramid got a SparseFeature; it expects a tuple of maps'):
        SimpleFeaturePyramid(8, 4)((half_full(),))


def test_a_list_of_necks_builds_a_sequence():
    neck = MODELS.build(
        [
            dict(type='TokenReinsertion'),
            dict(type='SimpleFeaturePyramid', in_channels=2, out_channels=3, strides=(8, 16)),
        ]
    )
    assert [tuple(m.shape) for m in neck((half_full(),))] == [(1, 3, 4, 4), (1, 3, 2, 2)]


def test_maps_are_contiguous_because_compiled_operators_ignore_strides():
    complete = SparseFeature(torch.randn(1, 16, 8), None, (4, 4))
    maps = TokenReinsertion()((complete,))
    pyramid = SimpleFeaturePyramid(8, 4, 16, (4, 8, 16, 32, 64))(maps)
    assert all(level.is_contiguous() for level in (*maps, *pyramid))


def test_roi_align_reads_the_pyramid_as_it_is():
    ops = pytest.importorskip('mmcv.ops')
    (level,) = SimpleFeaturePyramid(8, 4, 16, (16,))((torch.randn(2, 8, 6, 6),))
    rois = torch.tensor([[0.0, 16, 16, 64, 64], [1.0, 0, 32, 48, 96]])
    pooled = ops.RoIAlign(1, 1 / 16, sampling_ratio=1, aligned=True)(level, rois)
    # The centre of a box, sampled once, by torch's own bilinear sampling.
    centres = torch.tensor([[40.0, 40.0], [24.0, 64.0]]) / 16 - 0.5
    grid = (2 * centres + 1) / 6 - 1
    expected = F.grid_sample(level, grid[:, None, None], align_corners=False)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('count', [0, 8])
@pytest.mark.parametrize('settings', [{}, dict(window_size=3)])  # in windows complete tokens are not in raster order
def test_the_mask_token_has_a_gradient_also_where_nothing_is_missing(count, settings):
    """DDP waits for one from every parameter."""
    pruning = dict(pruner=dict(type='RandomPruner'), rate=count, fusion=None)
    model = small_vit(pruning=pruning, arch=dict(class_token=False, num_registers=0), **settings).train()
    neck = TokenReinsertion('mask_token', embed_dim=16).train()
    neck(model(torch.randn(1, 3, 24, 24)))[-1].sum().backward()
    assert neck.mask_token.grad is not None and bool(neck.mask_token.grad.abs().sum() > 0) == bool(count)
