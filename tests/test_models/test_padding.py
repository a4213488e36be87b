"""What pipelines and data preprocessors of the mm libraries pad is pruned first, without a hook and without samples."""

import numpy as np
import pytest
import torch
from helpers import small_vit
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope

NORMAL = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
SIZES = ((20, 24), (24, 9), (11, 17))
PATCH = 4

DETECTION = {
    'YOLOX': ([dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))], dict(pad_value=114)),
    'RTMDet': (
        [dict(type='Pad', size=(28, 28), pad_val=dict(img=(114, 114, 114)))],
        dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]),
    ),
    'zeros, then normalised': ([dict(type='Pad', size_divisor=8)], dict(NORMAL, pad_size_divisor=32)),
    'by the preprocessor': ([], dict(NORMAL, pad_size_divisor=32)),
}


def images():
    """uint8 images with dark borders that are not of one colour."""
    random = np.random.default_rng(0)
    drawn = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    for image in drawn:
        image[-3:], image[:, -3:] = 0, 0
        image[-1, ::2], image[::2, -1] = 1, 1
    return drawn


def batch(library, steps, preprocessor):
    pytest.importorskip(library)
    from cropr_mm.utils.libraries import register_library

    register_library(dict(default_scope=library))
    kind, processor = {'mmdet': ('Det', 'Preprocessor'), 'mmseg': ('Seg', 'PreProcessor')}[library]
    with DefaultScope.overwrite_default_scope(library):
        keys = ('ori_shape', 'img_shape')
        pipeline = Compose([*steps, dict(type=f'Pack{kind}Inputs', meta_keys=keys)])
        found = [pipeline(dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])) for image in images()]
        preprocessor = MODELS.build(dict(type=f'{kind}Data{processor}', **preprocessor))
    return preprocessor(pseudo_collate(found), training=True)


def assert_padding_goes_first(data):
    """As many patches leave as lie beyond the image, or fewer: none of the image goes before them."""
    pixels = data['inputs']
    model = small_vit(pruning=dict(pruner=dict(type='RandomPruner'), rate=3, round_to=1)).eval()
    order = []
    model.prune_listeners.append(lambda block, kept, removed: order.append(removed))
    with torch.no_grad():
        model(pixels)
    rows, columns = model.grid_of(*pixels.shape[2:])
    for i, (height, width) in enumerate(SIZES):
        left = torch.cat([removed[i] for removed in order])
        beyond = (left // columns * PATCH >= height) | (left % columns * PATCH >= width)
        total = rows * columns - -(-height // PATCH) * -(-width // PATCH)
        assert len(left) > 5 and beyond[:total].all(), (i, beyond, total)


@pytest.mark.parametrize('name', DETECTION)
def test_detection(name):
    data = batch('mmdet', *DETECTION[name])
    if DETECTION[name][0]:  # why the samples are not asked
        assert any(tuple(sample.img_shape) != size for sample, size in zip(data['data_samples'], SIZES))
    assert_padding_goes_first(data)


@pytest.mark.parametrize('steps', [[], [dict(type='Pad', size=(26, 26), pad_val=dict(img=0, seg=255))]])
def test_segmentation(steps):
    assert_padding_goes_first(batch('mmseg', steps, dict(NORMAL, size=(28, 28), pad_val=0, seg_pad_val=255)))
