"""Sliding windows are those of mmsegmentation."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm.utils.sliding import prediction_windows

sides = st.integers(4, 60)


@given(sides, sides, sides, sides, st.data())
def test_windows_are_those_of_mmsegmentation(height, width, crop_y, crop_x, data):
    segmentors = pytest.importorskip('mmseg.models.segmentors')
    stride = data.draw(st.integers(1, crop_y)), data.draw(st.integers(1, crop_x))
    seen = []

    def look(images, metas):
        seen.append((images[0, 0, 0, 0].item(), *images.shape[2:]))
        return images

    model = SimpleNamespace(
        test_cfg=SimpleNamespace(mode='slide', crop_size=(crop_y, crop_x), stride=stride),
        out_channels=1,
        encode_decode=look,
    )
    numbers = torch.arange(height * width).float().view(1, 1, height, width)
    segmentors.EncoderDecoder.slide_inference(model, numbers, [{}])
    model.test_cfg = vars(model.test_cfg)
    parts = [numbers[(..., *window)] for window in prediction_windows(model, (height, width))]
    assert [(part[0, 0, 0, 0].item(), *part.shape[2:]) for part in parts] == seen


@pytest.mark.parametrize('settings', [None, dict(mode='whole')])
def test_without_sliding_the_image_is_seen_at_once(settings):
    (window,) = prediction_windows(SimpleNamespace(test_cfg=settings), (7, 9))
    assert window == (slice(0, 7), slice(0, 9))
