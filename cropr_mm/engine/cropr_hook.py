"""The one hook that training with Cropr needs."""

from __future__ import annotations

import inspect
from typing import Any, cast

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..models.vit import CroprViT
from .bfloat16 import let_mmcv_take_bfloat16
from .curriculum import Curriculum
from .retrofit import check_fits, check_wrapper, evaluate_all_but_pruners, freeze_all_but_pruners


@HOOKS.register_module()
class CroprHook(Hook):
    """Adds the auxiliary losses to the model's loss dict and ramps the pruning rate up (curriculum).

    The losses join through a PyTorch forward hook on the unwrapped model, inside the wrapped model's forward, so
    that DDP, FSDP, AMP, gradient accumulation and EMA see one ordinary loss. ``cropr.loss_aux`` is the sum over all
    modules (weight 1, arXiv 2412.00965); ``cropr.aux.{i}`` is the value of each module, for the log alone.

    The rate follows from the position in the training alone, so a resumed run continues exactly. It holds in
    training; validation prunes at the full rate.

    Args:
        ramp, begin, shape, by_epoch: see :class:`Curriculum`.
        retrofit: freeze the whole model but the pruners, to make a finished dense model prunable (load it by
            ``load_from``). What is frozen stays as it was to the bit, and in evaluation mode. Under DDP,
            ``find_unused_parameters=True`` is needed.

    Raises:
        ValueError: a setting out of range, a model without a CroprViT, or nothing to train in a retrofit.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        ramp: float = 0.5,
        begin: float = 0.0,
        shape: str = 'linear',
        by_epoch: bool = False,
        retrofit: bool = False,
    ) -> None:
        self.curriculum = Curriculum(ramp, begin, shape, by_epoch)
        self.retrofit = retrofit
        self._backbones: list[CroprViT] = []
        self._handle: RemovableHandle | None = None

    def before_run(self, runner: Runner) -> None:
        let_mmcv_take_bfloat16()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self.retrofit and not runner._resume:
            check_fits(_unwrap(runner.model), checkpoint.get('state_dict', checkpoint))

    def before_train(self, runner: Runner) -> None:
        self.curriculum.check(runner)
        model = _unwrap(runner.model)
        self.attach(model)
        if self.retrofit:
            check_wrapper(runner.model)
            freeze_all_but_pruners(model)
            if not (runner._load_from or runner._resume):
                runner.logger.warning(
                    'CroprHook.retrofit=True without load_from: the pruners learn on a model that has only its '
                    'initial weights, and the rest of it never changes'
                )
        self._set_progress(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._set_progress(runner)
        if self.retrofit:
            evaluate_all_but_pruners(_unwrap(runner.model))

    def after_train(self, runner: Runner) -> None:
        self.detach()

    def attach(self, model: nn.Module) -> None:
        """Register on an unwrapped model; a second call replaces the first."""
        self.detach()
        self._backbones = [m for m in model.modules() if isinstance(m, CroprViT)]
        if not self._backbones:
            raise ValueError(
                f'CroprHook: {type(model).__name__} has no CroprViT; set model.backbone.type to '
                "'CroprViT' or take the hook out of custom_hooks"
            )
        for backbone in self._backbones:
            backbone.aux_is_read = True
        self._handle = model.register_forward_hook(self._add_losses, with_kwargs=True)

    def detach(self) -> None:
        """Take everything back that ``attach`` did."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for backbone in self._backbones:
            backbone.aux_is_read = False
            backbone.pruning_progress = 1.0
        self._backbones = []

    def _set_progress(self, runner: Runner) -> None:
        progress = self.curriculum.progress_of(runner)
        for backbone in self._backbones:
            backbone.pruning_progress = progress

    def _add_losses(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = inspect.signature(model.forward).bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments.get('mode') != 'loss' or not isinstance(output, dict):
            return None
        losses: dict[str, Any] = {}
        for backbone in self._backbones:
            for key, value in backbone.aux_losses(call.arguments['data_samples']).items():
                losses[f'cropr.{key}'] = losses.get(f'cropr.{key}', 0) + value
        return {**output, **losses}


def _unwrap(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model):
        model = cast(nn.Module, model.module)
    return model
