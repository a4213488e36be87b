"""Where mmsegmentation's sliding windows lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Window(NamedTuple):
    """Rows and columns of pixels; ``pixels[(..., *window)]`` is that part of a map (…, H, W)."""

    rows: slice
    columns: slice


def prediction_windows(model: Any, size: Sequence[int]) -> list[Window]:
    """What the backbone of a model sees of images of ``size`` (H, W) in prediction, call by call.

    All at once but with mmsegmentation's ``test_cfg=dict(mode='slide', …)``.
    """
    settings = getattr(model, 'test_cfg', None) or {}
    crops, strides = size, size
    if settings.get('mode') == 'slide':
        crops, strides = settings['crop_size'], settings['stride']
    axes = []
    for length, crop, stride in zip(size, crops, strides):
        ends = [min(start + crop, length) for start in range(0, max(length - crop, 0) + stride, stride)]
        axes.append([slice(max(end - crop, 0), end) for end in ends])
    return [Window(rows, columns) for rows in axes[0] for columns in axes[1]]
