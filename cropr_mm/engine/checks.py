"""Mistakes in a config or a training that would stop nothing, or stop it far from where the mistake is."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from ..models.archs import resolve_arch
from ..models.cropr_vit import CroprViT
from ..models.necks.pyramid import SimpleFeaturePyramid, check_stride
from ..models.pruning import DifficultyPruner
from ..utils.checks import check_integer, check_number, is_type, nearest

HOLDERS = ('model', 'model.detector')
PYRAMIDS = ('SimpleFeaturePyramid', 'StandInPyramid')
ADAMW = "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05))"


class TrainingChecks(Hook):
    """The checks of a training without a CroprHook, which does them itself."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            check_resumable(checkpoint, str(runner._load_from))

    def before_train(self, runner: Runner) -> None:
        warn_before_training(runner)


# --- the config, before anything is built ---------------------------------------------------------------------------


def check_config(cfg: Config) -> None:
    """Check that a CroprViT has taken the place of another backbone completely, and the numbers of a training.

    Raises:
        ValueError: arguments of the old backbone, its weights, a stride, channels or a feature map that is no longer
            there, or a number of the training out of range. The message names the key and what to write.
    """
    _check_run(cfg)
    for where, holder in _swapped(cfg):
        _check_arguments(f'{where}.backbone', holder.backbone)
        if holder.get('pretrained') is not None:
            raise ValueError(
                f'{where}.pretrained={holder.pretrained!r} holds weights of another backbone; set {where}.pretrained='
                f'None. Weights of a CroprViT are {where}.backbone.init_cfg'
            )
        necks = holder.get('neck') or []
        necks = list(necks) if isinstance(necks, (list, tuple)) else [necks]
        if necks and is_type(necks[0], 'TokenReinsertion') and len(necks) > 1 and is_type(necks[1], *PYRAMIDS):
            check_stride(f'{where}.neck[1]', necks[1].get('in_stride', 16), holder.backbone.get('patch_size', 16))
        _check_logits(where, holder, necks)
        channels = _channels(f'{where}.neck', holder.backbone, necks)
        for key in ('decode_head', 'auxiliary_head'):
            _check_levels(f'{where}.{key}', holder.get(key), channels)


def holders(cfg: Config) -> Iterator[tuple[str, Any]]:
    """What may hold a backbone, with its key: the model, and the detector in trackers and semi-supervised detectors."""
    model = cfg.get('model')
    for key, holder in zip(HOLDERS, (model, model.get('detector') if isinstance(model, Mapping) else None)):
        if isinstance(holder, Mapping):
            yield key, holder


def _swapped(cfg: Config) -> Iterator[tuple[str, Any]]:
    """The holders whose backbone is a CroprViT."""
    return ((key, holder) for key, holder in holders(cfg) if is_type(holder.get('backbone'), 'CroprViT'))


def _check_arguments(key: str, backbone: Mapping[str, Any]) -> None:
    valid = arguments_of(backbone['type'] if isinstance(backbone['type'], type) else CroprViT)
    unknown = sorted(set(backbone) - {'type', '_scope_', *(valid or ())})
    if unknown and valid is not None:
        raise ValueError(
            f'{key} has {", ".join(unknown)}, which CroprViT does not take. If that is from the backbone before, '
            f'_delete_=True is missing in {key}; valid are {", ".join(valid)}'
        )


def arguments_of(kind: type) -> list[str] | None:
    """Names of the arguments of a CroprViT; None where a subclass takes any."""
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else list(parameters)


def _channels(key: str, backbone: Mapping[str, Any], necks: list[Any]) -> list[int | None] | None:
    """Channels of the maps that the heads get, as far as the config says; None where the neck is not ours."""
    if not necks or not is_type(necks[0], 'TokenReinsertion'):
        return None
    width = resolve_arch(backbone['arch']).embed_dim if 'arch' in backbone else None
    if len(necks) == 1:
        indices = backbone.get('out_indices', -1)
        return [width] * (1 if isinstance(indices, int) else len(indices))
    if len(necks) > 2 or not is_type(necks[1], *PYRAMIDS):
        return None
    pyramid, defaults = necks[1], inspect.signature(SimpleFeaturePyramid).parameters
    if width is not None and pyramid.get('in_channels', width) != width:
        raise ValueError(
            f'{key}[1].in_channels={pyramid["in_channels"]!r}, but the backbone has {width} channels; set {key}[1].'
            f'in_channels={width}'
        )
    channels = pyramid.get('out_channels', defaults['out_channels'].default)
    strides = pyramid.get('strides', defaults['strides'].default)
    return list(channels) if isinstance(channels, (list, tuple)) else [channels] * len(strides)


def _check_levels(key: str, head: Any, channels: list[int | None] | None) -> None:
    for i, settings in enumerate(head if isinstance(head, (list, tuple)) else [head]):
        if channels is None or not isinstance(settings, Mapping):
            continue
        index, count = settings.get('in_index'), len(channels)
        listed = list(index) if isinstance(index, (list, tuple)) else [index]
        name = f'{key}[{i}]' if isinstance(head, (list, tuple)) else key
        if any(isinstance(i, int) and not -count <= i < count for i in listed):
            remedy = f', or {key}=None to leave it out' if key.endswith('auxiliary_head') else ''
            raise ValueError(
                f'{name}.in_index={index}, but neck gives {count} map{"s" * (count > 1)}; 0 to {count - 1} are valid '
                f'(with in_channels to match){remedy}'
            )
        read = settings.get('in_channels')
        given = [channels[i] for i in listed if isinstance(i, int)]
        expected = given[0] if given and isinstance(index, int) else given
        read = list(read) if isinstance(read, (list, tuple)) else read
        alike = type(read) is type(expected)
        if given and None not in given and alike and read != expected:
            raise ValueError(
                f'{name}.in_channels={read}, but the maps that it reads (in_index={index}) have {expected} '
                f'channels; set {name}.in_channels={expected}'
            )


def _check_run(cfg: Config) -> None:
    """Check what mmengine takes as it is, to fail far from it or to train nothing."""
    least = {'train_cfg.max_iters': 1, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'randomness.seed': 0}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        least.update({f'{loader}.batch_size': 1, f'{loader}.num_workers': 0})
    for key, bound in least.items():
        part, _, name = key.partition('.')
        value = (cfg.get(part) or {}).get(name)
        if value is not None:
            check_integer(key, value, bound)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if 'lr' in optimizer:
        check_number('optim_wrapper.optimizer.lr', optimizer['lr'], least=0)
    kind = optimizer.get('type')
    with OPTIMIZERS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        if isinstance(kind, str) and registry.get(kind) is None:
            known = OPTIMIZERS.module_dict
            raise ValueError(f'optim_wrapper.optimizer.type={kind!r} is no optimizer{nearest(kind, known)}')
    if cfg.get('strategy') and 'runner_type' not in cfg:
        raise ValueError(
            f'strategy.type={cfg.strategy.get("type")!r} without runner_type, so it would not be used; runner_type='
            "'FlexibleRunner' is expected beside it"
        )
    level = cfg.get('log_level', 'INFO')
    if logging.getLevelName(level) == f'Level {level}':
        raise ValueError(f'log_level={level!r}; DEBUG, INFO, WARNING or ERROR is expected')
    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(hook, Mapping) and 'type' in hook for hook in hooks):
        raise ValueError(f'custom_hooks={hooks!r}; a list of configs with a type is expected')


def _check_logits(where: str, holder: Any, necks: list[Any]) -> None:
    pruning, head = holder.backbone.get('pruning'), holder.get('decode_head')
    if not isinstance(pruning, Mapping) or pruning.get('fusion') != 'logits':
        return
    kind = head.get('type') if isinstance(head, Mapping) else None
    fits = len(necks) == 1 and is_type(necks[0], 'TokenReinsertion') and necks[0].get('num_classes')
    if not fits or not is_type(head, 'LogitFusionHead'):
        raise ValueError(
            f"{where}.backbone.pruning.fusion='logits' with {where}.decode_head.type={kind!r}; it takes "
            f"{where}.neck=dict(type='TokenReinsertion', num_classes=…) alone and {where}.decode_head="
            "dict(type='LogitFusionHead', head=dict(…)), the head as it was"
        )


def config_warnings(cfg: Config) -> list[str]:
    """What works here and would not elsewhere."""
    imports = (cfg.get('custom_imports') or {}).get('imports')
    by_name = any(isinstance(holder.backbone.type, str) for _, holder in _swapped(cfg))
    if by_name and not imports:
        return [
            "custom_imports=dict(imports=['cropr_mm']) is missing in the config; this tool imports cropr_mm, those of "
            'mmsegmentation and mmdetection, init_model and init_detector would not find CroprViT'
        ]
    return []


def sgd_warning(where: str, lr: Any) -> str:
    return (
        f"{where}: the optimizer is SGD at lr={lr}, as a ResNet's schedules have it; a plain ViT hardly learns with "
        f'it, or diverges. Write {ADAMW}, and in param_scheduler an eta_min well below that lr (mmsegmentation: 1e-4)'
    )


# --- the training, before it starts ---------------------------------------------------------------------------------


def check_resumable(checkpoint: Any, source: str) -> None:
    """Raise ValueError where a checkpoint does not tell how far its training was."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    if not isinstance(meta, Mapping) or not {'epoch', 'iter'} <= {*meta}:
        raise ValueError(
            f'{source}: holds weights and not how far their training was (meta.epoch and iter), so none can be resumed '
            'from it; start one with load_from'
        )


def warn_before_training(runner: Runner) -> None:
    """Log what :func:`label_warnings` and :func:`optimizer_warnings` find in a runner."""
    model = unwrap(runner.model)
    for message in (*label_warnings(model), *optimizer_warnings(model, runner.optim_wrapper)):
        runner.logger.warning(message)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without what distributes it."""
    while is_model_wrapper(model):
        model = cast(nn.Module, model.module)
    return model


def label_warnings(model: nn.Module) -> list[str]:
    """Where pruners learn from other classes, or from other pixels, than the main head beside their backbone.

    Silent where a difference can be meant: label maps of stuff and things beside boxes, heads of one class (RPN).
    """
    messages: list[str] = []
    for name, backbone in model.named_modules():
        if not isinstance(backbone, CroprViT):
            continue
        owner = model.get_submodule(name.rpartition('.')[0])
        for pruner in backbone.pruners.values():
            head = getattr(pruner, 'aux_head', None)
            key = f'{name}.pruning.pruner' + ('' if isinstance(pruner, DifficultyPruner) else '.aux_head')
            messages += _differences(key, head, owner)
    return list(dict.fromkeys(messages))


def _differences(key: str, aux_head: Any, owner: nn.Module) -> Iterator[str]:
    classes, ignored = getattr(aux_head, 'num_classes', None), getattr(aux_head, 'ignore_index', None)
    if not isinstance(classes, int):
        return
    for name, heads in _main_heads(owner):
        known = _numbers(heads, 'num_classes')
        if known and min(known) > 1 and classes not in known:
            yield (
                f'{key}.num_classes={classes}, but {name}.num_classes={min(known)}: both learn from the same labels, '
                'so both are expected to be the number of classes of the data set'
            )
        known = _numbers(heads, 'ignore_index')
        if known and isinstance(ignored, int) and ignored not in known:
            yield (
                f'{key}.ignore_index={ignored}, but {name}.ignore_index={min(known)}: the pruners learn from pixels '
                f'that the head ignores; set {key}.ignore_index={min(known)}'
            )


def _numbers(heads: list[nn.Module], name: str) -> set[int]:
    values: list[Any] = [getattr(head, name, None) for head in heads]
    return {value for value in values if isinstance(value, int)}


def _main_heads(owner: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    if any(hasattr(owner, name) for name in ('semantic_head', 'panoptic_head')):
        return  # things alone, or things and stuff: what the pruners should learn from is the user's choice
    for name in ('decode_head', 'bbox_head', 'roi_head.bbox_head', 'head'):
        head: Any = owner
        for part in name.split('.'):
            head = getattr(head, part, None)
        if isinstance(head, nn.Module):
            yield name, list(head) if isinstance(head, nn.ModuleList) else [head]


def optimizer_warnings(model: nn.Module, optim_wrapper: Any) -> list[str]:
    """Where SGD trains the blocks of a CroprViT."""
    blocks = {p for vit in model.modules() if isinstance(vit, CroprViT) for p in vit.blocks.parameters()}
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    for optimizer in (getattr(wrapper, 'optimizer', None) for wrapper in wrappers):
        if isinstance(optimizer, torch.optim.SGD):
            rates = [
                group.get('initial_lr', group['lr'])
                for group in optimizer.param_groups
                if any(p.requires_grad and p in blocks for p in group['params'])
            ]
            if any(rates):
                return [sgd_warning('optim_wrapper.optimizer', max(rates))]
    return []
