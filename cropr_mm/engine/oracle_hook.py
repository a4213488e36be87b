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

from ..models.pruning.oracle import OraclePruner, in_patches, object_pixels
from ..utils.sliding import prediction_windows
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
            if not samples:
                parts[:] = [None]
                return
            size = images.shape[-2:]
            pixels = torch.stack([object_pixels(sample, size, self.object_classes) for sample in samples])
            parts[:] = [pixels]
            if call.get('mode') == 'predict':
                parts[:] = [pixels[(..., *window)] for window in prediction_windows(module, size)]

        def next_part(module: nn.Module, args: tuple[Any, ...]) -> None:
            part = parts.pop(0) if len(parts) > 1 else parts[0]
            for pruner in pruners:
                pruner.share = None if part is None else in_patches(part, backbone.patch_size).flatten(1)

        parts: list[Tensor | None] = [None]  # what the next calls of the backbone see
        for handle in self._handles:
            handle.remove()
        self._handles = [
            model.register_forward_pre_hook(hand_over, with_kwargs=True),
            backbone.register_forward_pre_hook(next_part),
        ]
