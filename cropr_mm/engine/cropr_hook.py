"""The one hook that training with Cropr needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..checkpoint.whole_model import weights_of
from ..models.cropr_vit import CroprViT
from ..models.pruning import Schedule
from ..utils.checks import check_flag
from .bfloat16 import let_mmcv_take_bfloat16
from .checks import check_resumable, unwrap, warn_before_training
from .curriculum import Curriculum
from .retrofit import check_fits, check_start, check_wrapper, freeze_all_but_pruners, modules_to_evaluate, wrap_again


@HOOKS.register_module()
class CroprHook(Hook):
    """Adds the auxiliary losses to the model's loss dict and ramps the pruning rate up (curriculum).

    The losses join through a PyTorch forward hook on the unwrapped model, inside the wrapped model's forward, so
    that DDP, FSDP, AMP, gradient accumulation and EMA see one ordinary loss. ``cropr.loss_aux`` is the sum over all
    pruners (weight 1, arXiv 2412.00965); ``cropr.aux.{block}`` is the value of the one after that block, for the log
    alone.

    The rate follows from the iteration alone, so a resumed run continues exactly. It holds in training; validation
    prunes at the full rate. In the log, ``cropr.progress`` is the share of the final rate, and ``cropr.keep_ratio``
    the share of an image's patch tokens, at the training size, that are kept after the last pruned block.

    Args:
        ramp, begin, shape, by_epoch: see :class:`Curriculum`.
        retrofit: freeze the whole model but the pruners, to make a finished dense model prunable (load it by
            ``load_from``). What is frozen keeps its values to the bit, and stays in evaluation mode. DDP reduces the
            gradients of the pruners alone.

    Raises:
        ValueError: a setting out of range, a model without a CroprViT, a second CroprHook, a retrofit of random
            weights or with nothing to train.
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
        self.retrofit = check_flag('CroprHook.retrofit', retrofit)
        self._backbones: list[CroprViT] = []
        self._handle: RemovableHandle | None = None
        self._evaluated: list[nn.Module] = []

    def before_run(self, runner: Runner) -> None:
        let_mmcv_take_bfloat16()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        weights = weights_of(checkpoint, str(runner._load_from))
        if runner._resume:
            check_resumable(checkpoint, str(runner._load_from))
            _check_size(unwrap(runner.model), weights)
        elif self.retrofit:
            check_wrapper(runner.model)
            check_fits(unwrap(runner.model), weights)

    def before_train(self, runner: Runner) -> None:
        self.curriculum.check(runner)
        model = unwrap(runner.model)
        if sum(isinstance(hook, CroprHook) for hook in runner.hooks) > 1:
            raise ValueError(
                f'CroprHook: {type(model).__name__} has one already; leave one of them in custom_hooks, and look for '
                'the other in the configs under _base_'
            )
        self.attach(model)
        for name, backbone in model.named_modules():
            if isinstance(backbone, CroprViT) and backbone.schedule is not None:
                runner.logger.info(f'CroprHook: {_plan(name, backbone, backbone.schedule)}')
        if self.retrofit:
            check_start(model, runner._has_loaded)
            trained, frozen = freeze_all_but_pruners(model)
            runner.logger.info(f'CroprHook: retrofit: {trained:,} parameters train, {frozen:,} are frozen')
            wrap_again(runner)
            self._evaluated = modules_to_evaluate(model)
        self._set_progress(runner)
        warn_before_training(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._set_progress(runner)
        for backbone in self._backbones:
            if backbone.schedule is not None:  # numbers of this process: the log costs no synchronisation
                runner.message_hub.update_scalar('train/cropr.progress', backbone.pruning_progress)
                runner.message_hub.update_scalar('train/cropr.keep_ratio', _keep_ratio(backbone, backbone.schedule))
                break
        for module in self._evaluated:  # the loop puts the whole model into training mode before each iteration
            module.training = False

    def after_train(self, runner: Runner) -> None:
        self.detach()

    def attach(self, model: nn.Module) -> None:
        """Register on an unwrapped model, in place of this hook or another that is registered there.

        A training that an exception ended leaves its hook registered: mmengine calls none in that case.
        """
        for function in list(model._forward_hooks.values()):
            owner = getattr(function, '__self__', None)
            if isinstance(owner, CroprHook):
                owner.detach()
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
        """Undo everything that :meth:`attach` did."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for backbone in self._backbones:
            backbone.aux_is_read = False
            backbone.pruning_progress = 1.0
        self._backbones, self._evaluated = [], []

    def _set_progress(self, runner: Runner) -> None:
        progress = self.curriculum.progress_of(runner)
        for backbone in self._backbones:
            backbone.pruning_progress = progress

    def _add_losses(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = inspect.signature(model.forward).bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments.get('mode') != 'loss' or not isinstance(output, dict):
            for backbone in self._backbones:
                backbone.forget_aux()
            return None
        losses: dict[str, Any] = {}
        for backbone in self._backbones:
            for key, value in backbone.aux_losses(call.arguments['data_samples']).items():
                losses[f'cropr.{key}'] = losses.get(f'cropr.{key}', 0) + value
        return {**output, **losses}


def _plan(name: str, backbone: CroprViT, schedule: Schedule) -> str:
    """What is pruned where, at the training size and the final rate."""
    kept = backbone.grid[0] * backbone.grid[1]
    line = f'{name or "the model"}: of {kept} patch tokens ({backbone.grid[0]}×{backbone.grid[1]})'
    parts = []
    for block, count in zip(schedule.blocks, schedule.counts(backbone.grid, backbone.num_prefix_tokens)):
        kept -= count
        parts.append(f'{kept} after block {block}')
    pruner = ', '.join(sorted({type(pruner).__name__ for pruner in backbone.pruners.values()}))
    return f'{line}, {pruner} keeps {", ".join(parts)}, once the final rate is reached'


def _keep_ratio(backbone: CroprViT, schedule: Schedule) -> float:
    """Share of the patch tokens of a training image that are kept after the last pruned block, now."""
    counts = schedule.counts(backbone.grid, backbone.num_prefix_tokens, backbone.pruning_progress)
    return 1 - sum(counts) / (backbone.grid[0] * backbone.grid[1])


def _check_size(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse to resume at another size: a positional embedding is resized as it loads, its optimizer state is not."""
    for name, backbone in model.named_modules():
        if isinstance(backbone, CroprViT) and backbone.pos_embed is not None:
            found = weights.get(f'{name}.pos_embed'.lstrip('.'))
            count = backbone.arch.num_embedded_prefix_tokens + backbone.grid[0] * backbone.grid[1]
            if found is not None and found.ndim == 3 and found.shape[1] != count:
                raise ValueError(
                    f'resume: the checkpoint was trained with another img_size: {name}.pos_embed '
                    f'{tuple(found.shape)}, {count} positions are expected. Its optimizer state does not fit; start a '
                    'new training from it with load_from'
                )
