"""Mistakes in a config or a training that would stop nothing, or stop it far from where the mistake is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..models.cropr_vit import CroprViT
from ..models.necks.pyramid import SimpleFeaturePyramid, check_stride
from ..models.pruning import DifficultyPruner
from ..utils.checks import is_type

HOLDERS = ('model', 'model.detector')
PYRAMIDS = ('SimpleFeaturePyramid', 'StandInPyramid')
ADAMW = "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05))"


class TrainingChecks(Hook):
    """Logs what :func:`warn_before_training` finds, in a training without a CroprHook (which does it itself)."""

    def before_train(self, runner: Runner) -> None:
        warn_before_training(runner)


# --- the config, before anything is built ---------------------------------------------------------------------------


def check_config(cfg: Config) -> None:
    """Check that a CroprViT has taken the place of another backbone completely.

    Raises:
        ValueError: arguments of the old backbone, its weights, a stride or a feature map that is no longer there. The
            message names the key and what to write.
    """
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
        for key in ('decode_head', 'auxiliary_head'):
            _check_levels(f'{where}.{key}', holder.get(key), _num_maps(holder.backbone, necks))


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


def _num_maps(backbone: Mapping[str, Any], necks: list[Any]) -> int | None:
    """How many maps the heads get; None where the neck is not ours."""
    if not necks or not is_type(necks[0], 'TokenReinsertion'):
        return None
    if len(necks) == 1:
        indices = backbone.get('out_indices', -1)
        return 1 if isinstance(indices, int) else len(indices)
    if len(necks) > 2 or not is_type(necks[1], *PYRAMIDS):
        return None
    default = inspect.signature(SimpleFeaturePyramid).parameters['strides'].default
    return len(necks[1].get('strides', default))


def _check_levels(key: str, head: Any, count: int | None) -> None:
    for i, settings in enumerate(head if isinstance(head, (list, tuple)) else [head]):
        index = settings.get('in_index') if isinstance(settings, Mapping) else None
        listed = list(index) if isinstance(index, (list, tuple)) else [index]
        if count is not None and any(isinstance(i, int) and not -count <= i < count for i in listed):
            name = f'{key}[{i}]' if isinstance(head, (list, tuple)) else key
            remedy = f', or {key}=None to leave it out' if key.endswith('auxiliary_head') else ''
            raise ValueError(
                f'{name}.in_index={index}, but neck gives {count} map{"s" * (count > 1)}; 0 to {count - 1} are valid '
                f'(with in_channels to match){remedy}'
            )


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
