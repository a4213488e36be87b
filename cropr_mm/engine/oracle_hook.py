"""The hook that hands the labels of each batch to the oracle."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
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
        self._handle: RemovableHandle | None = None

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
            share = [object_share(s, grid, backbone.patch_size, self.object_classes) for s in samples]
            for pruner in pruners:
                pruner.share = torch.stack(share) if share else None

        if self._handle is not None:
            self._handle.remove()
        self._handle = model.register_forward_pre_hook(hand_over, with_kwargs=True)
