"""The hook that hands the labels of each batch to the oracle."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..models.pruning.oracle import OraclePruner, object_share
from .checks import unwrap


@HOOKS.register_module()
class OracleHook(Hook):
    """Hands the labels of each batch to every OraclePruner, in training, validation and testing.

    Args:
        object_classes: label values that are objects, for segmentation; None for detection.
    """

    def __init__(self, object_classes: Sequence[int] | None = None) -> None:
        self.object_classes = object_classes
        self._handles: list[RemovableHandle] = []

    def before_run(self, runner: Runner) -> None:
        self.attach(unwrap(runner.model))

    def attach(self, model: nn.Module) -> None:
        """Register on an unwrapped model with a CroprViT whose pruners are OraclePruners; replaces an earlier call.

        mmengine announces each run of a runner: a training, and the test after it.
        """
        backbone = getattr(model, 'backbone', None)
        pruners = [m for m in model.modules() if isinstance(m, OraclePruner)]
        if backbone is None or not pruners:
            raise ValueError("OracleHook: the model has no OraclePruner; set pruning.pruner.type to 'OraclePruner'")

        def hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            images, samples = call['inputs'], call.get('data_samples') or []
            grid = backbone.grid_of(*images.shape[-2:])
            shares = [object_share(s, grid, backbone.patch_size, self.object_classes) for s in samples]
            whole = torch.stack(shares).unflatten(1, grid) if shares else None
            parts[:] = [whole]
            if whole is not None and call.get('mode') == 'predict':
                parts[:] = [whole[..., rows, columns] for rows, columns in _windows(module, images.shape[-2:])]

        def next_part(module: nn.Module, args: tuple[Any, ...]) -> None:
            part = parts.pop(0) if len(parts) > 1 else parts[0]
            for pruner in pruners:
                pruner.share = None if part is None else part.flatten(1)

        parts: list[Tensor | None] = [None]  # what the next calls of the backbone see
        for handle in self._handles:
            handle.remove()
        self._handles = [
            model.register_forward_pre_hook(hand_over, with_kwargs=True),
            backbone.register_forward_pre_hook(next_part),
        ]


def _windows(model: Any, size: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of the patch grid that each call of the backbone sees: mmsegmentation's sliding windows."""
    settings = getattr(model, 'test_cfg', None) or {}
    patch = model.backbone.patch_size
    if settings.get('mode') != 'slide':
        return [(slice(None), slice(None))]
    axes = []
    for length, crop, stride in zip(size, settings['crop_size'], settings['stride']):
        count = max(length - crop + stride - 1, 0) // stride + 1
        starts = [max(min(i * stride, length - crop), 0) for i in range(count)]
        if any(start % patch for start in starts):
            raise ValueError(
                f'OracleHook: test_cfg has windows from pixels {starts}; multiples of patch_size={patch} are expected'
            )
        axes.append([slice(start // patch, -(-min(start + crop, length) // patch)) for start in starts])
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]
