"""OracleHook hands each batch's labels over once, however often a runner begins, and to each window its part."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import cropr, seg_sample, small_vit
from torch import nn

from cropr_mm import OracleHook, OraclePruner


def model(pruner):
    holder = nn.Module()
    holder.backbone = small_vit(pruning=dict(pruner=pruner, rate=8))
    return holder


def test_a_test_after_a_training_attaches_nothing_twice():
    hook, runner = OracleHook(), SimpleNamespace(model=model(dict(type='OraclePruner')))
    hook.before_run(runner)  # mmengine calls it for the training, and again for the test
    (first,) = runner.model._forward_pre_hooks
    hook.before_run(runner)
    assert len(runner.model._forward_pre_hooks) == 1 and first not in runner.model._forward_pre_hooks


def test_a_model_without_an_oracle_is_named():
    with pytest.raises(
        ValueError, match=r"OracleHook: the model has no OraclePruner; set pruning.pruner.type to 'Orac"
    ):
        OracleHook().attach(model(cropr()))


class Slider(nn.Module):
    """Calls its backbone as mmsegmentation's segmentors do, with the crops of sliding windows when it predicts."""

    def __init__(self, crop=None, stride=None):
        super().__init__()
        self.backbone = small_vit(pruning=dict(pruner=dict(type='OraclePruner'), rate=8))
        self.test_cfg = dict(mode='whole') if crop is None else dict(mode='slide', crop_size=crop, stride=stride)
        self.windows, self.shares = [], []
        pruner = next(m for m in self.backbone.modules() if isinstance(m, OraclePruner))
        self.backbone.register_forward_hook(lambda *_: self.shares.append(pruner.share))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode != 'predict' or self.test_cfg['mode'] != 'slide':
            return self.backbone(inputs)
        height, width = inputs.shape[-2:]
        (crop_y, crop_x), (stride_y, stride_x) = self.test_cfg['crop_size'], self.test_cfg['stride']
        for row in range(max(height - crop_y + stride_y - 1, 0) // stride_y + 1):
            for column in range(max(width - crop_x + stride_x - 1, 0) // stride_x + 1):
                bottom, right = min(row * stride_y + crop_y, height), min(column * stride_x + crop_x, width)
                self.windows.append((max(bottom - crop_y, 0), bottom, max(right - crop_x, 0), right))
                top, bottom, left, right = self.windows[-1]
                self.backbone(inputs[:, :, top:bottom, left:right])


def labelled(size, count=2):
    labels = torch.randint(3, (count, *size))
    samples = [seg_sample(label) for label in labels]
    for sample in samples:
        sample.set_metainfo(dict(img_shape=size))
    return labels, samples


@pytest.mark.parametrize(
    'size, crop, stride, count',
    [
        ((24, 48), (24, 24), (24, 12), 3),
        ((40, 32), (24, 24), (12, 8), 6),  # the last rows and columns are drawn back to the edge
        ((24, 20), (24, 24), (16, 16), 1),  # an image narrower than a window
        ((24, 48), (24, 24), (24, 10), 4),  # windows that begin inside a patch of the whole image
    ],
)
def test_each_window_gets_the_labels_of_its_crop(size, crop, stride, count):
    model = Slider(crop, stride).eval()
    OracleHook(object_classes=[1, 2]).attach(model)
    labels, samples = labelled(size)
    with torch.no_grad():
        model(torch.randn(2, 3, *size), samples, mode='predict')
    assert len(model.shares) == len(model.windows) == count
    for share, (top, bottom, left, right) in zip(model.shares, model.windows):
        objects = (labels[:, top:bottom, left:right] > 0).float()
        torch.testing.assert_close(share, F.avg_pool2d(objects[:, None], 4).flatten(1))


@pytest.mark.parametrize('crop, mode', [((24, 24), 'loss'), (None, 'predict')])
def test_without_windows_the_whole_image_counts(crop, mode):
    model = Slider(crop, (12, 12))
    OracleHook(object_classes=[1, 2]).attach(model)
    labels, samples = labelled((24, 32))
    model(torch.randn(2, 3, 24, 32), samples, mode=mode)
    (share,) = model.shares
    torch.testing.assert_close(share, F.avg_pool2d((labels > 0).float()[:, None], 4).flatten(1))
