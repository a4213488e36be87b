"""Where the time of a forward pass goes: hooks on the modules that it calls."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models.cropr_vit import find_backbone
from .throughput import seconds_of, synchronise


def time_parts(model: nn.Module, call: Callable[[], Any], device: torch.device | str = 'cpu') -> dict[str, float]:
    """Seconds that each part of a model takes in one call.

    The device is synchronised around each module, so the sum exceeds the time of an uninterrupted call.

    Args:
        model: a CroprViT, or a model that has one in ``backbone``; its ``neck`` is a part, too.
        call: runs the model once.
        device: where it runs.

    Returns:
        ``embedding``, ``blocks``, ``pruning`` (score and split) and ``other``, the rest of the backbone: positions,
        Last Layer Fusion, final norm, and compiled blocks. Of a whole model also ``neck`` and ``head``, which is all
        the rest.
    """
    device = torch.device(device)
    backbone, neck = find_backbone(model), getattr(model, 'neck', None)
    modules: dict[str, list[nn.Module]] = dict(
        embedding=[backbone.patch_embed], blocks=[*backbone.blocks], pruning=[*backbone.pruners.children()]
    )
    within = {part: listed for part, listed in modules.items() if not any(map(_is_compiled, listed))}
    outer: dict[str, list[nn.Module]] = dict(backbone=[backbone], neck=[neck] if isinstance(neck, nn.Module) else [])
    with _timed({**within, **outer}, device) as seconds:
        total = seconds_of(call, 1, device)
    parts = {part: seconds[part] for part in within}
    parts['other'] = seconds['backbone'] - sum(parts.values())
    if outer['neck']:
        parts['neck'] = seconds['neck']
    if model is not backbone:
        parts['head'] = total - seconds['backbone'] - seconds['neck']
    return parts


def _is_compiled(module: nn.Module) -> bool:
    # ``module.compile()`` compiles hooks along with the module, and a new hook compiles it anew.
    return getattr(module, '_compiled_call_impl', None) is not None


@contextmanager
def _timed(parts: dict[str, list[nn.Module]], device: torch.device) -> Iterator[dict[str, float]]:
    """Add up the seconds that the modules of each part take, as long as the ``with`` lasts."""
    seconds: dict[str, float] = defaultdict(float)
    starts: dict[nn.Module, float] = {}

    def start(module: nn.Module, args: Any) -> None:
        synchronise(device)
        starts[module] = time.perf_counter()

    def stop(part: str, module: nn.Module) -> None:
        synchronise(device)
        seconds[part] += time.perf_counter() - starts.pop(module)

    handles = []
    for part, modules in parts.items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(start))
            handles.append(module.register_forward_hook(lambda module, args, output, part=part: stop(part, module)))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()
