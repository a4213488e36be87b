"""What the time of a forward pass goes into."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from ..models.cropr_vit import find_backbone
from .throughput import seconds_of, wait

# method of CroprViT → part
PARTS = dict(
    _embed='embedding', _run_block='blocks', _score='scoring', _select='selection', _fuse='fusion', _level='output'
)


def time_parts(model: nn.Module, call: Callable[[], Any], device: torch.device | str = 'cpu') -> dict[str, float]:
    """Seconds that each part of a model takes in one call.

    The device is waited for around each part, so that their sum is more than an uninterrupted call takes.

    Args:
        model: a CroprViT, or a model that has one, in ``backbone``; its ``neck`` is a part, too.
        call: runs the model once.
        device: where it runs.

    Returns:
        ``embedding``, ``blocks``, ``scoring``, ``selection``, ``fusion``, ``output`` (final norm); of a whole model
        also ``neck`` and ``head``, which is what is left of it; ``other`` is the rest of the backbone.
    """
    device = torch.device(device)
    seconds: dict[str, float] = defaultdict(float)
    backbone, neck = find_backbone(model), getattr(model, 'neck', None)
    with _timed(backbone, 'forward', 'backbone', seconds, device):
        for method, part in PARTS.items():
            seconds[part] = 0.0
            _wrap(backbone, method, part, seconds, device)
        try:
            if isinstance(neck, nn.Module):
                with _timed(neck, 'forward', 'neck', seconds, device):
                    total = seconds_of(call, 1, device)
            else:
                total = seconds_of(call, 1, device)
        finally:
            for method in PARTS:
                delattr(backbone, method)
    whole = seconds.pop('backbone')
    seconds['other'] = whole - sum(seconds[part] for part in PARTS.values())
    if model is not backbone:
        seconds['head'] = total - whole - seconds.get('neck', 0.0)
    return dict(seconds)


@contextmanager
def _timed(
    module: nn.Module, method: str, part: str, seconds: dict[str, float], device: torch.device
) -> Iterator[None]:
    _wrap(module, method, part, seconds, device)
    try:
        yield
    finally:
        delattr(module, method)


def _wrap(module: nn.Module, method: str, part: str, seconds: dict[str, float], device: torch.device) -> None:
    """Put a timed one in front of a method, for this instance alone."""
    original = getattr(module, method)

    @wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        wait(device)
        start = time.perf_counter()
        result = original(*args, **kwargs)
        wait(device)
        seconds[part] += time.perf_counter() - start
        return result

    setattr(module, method, timed)
