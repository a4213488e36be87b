"""Any mmsegmentation or mmdetection config with a CroprViT in place of its backbone."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from .engine.checks import HOLDERS, sgd_warning
from .models.cropr_vit import CroprViT
from .utils.checks import is_type
from .utils.libraries import register_library

LAYER_DECAY = 'CroprLayerDecayOptimWrapperConstructor'
# Those of mmsegmentation, mmdetection and mmpretrain read the layer out of names that a CroprViT does not have.
OTHER_LAYER_DECAYS = (
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


class Levels(NamedTuple):
    """What a backbone gives; the arguments of :class:`~cropr_mm.models.necks.StandInPyramid`."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    readout: bool = False
    eval_level: int | None = None


def swap_backbone(cfg: Config, backbone: dict[str, Any]) -> Config:
    """Replace the backbone of a config; whatever came behind it stays as it is.

    The neck becomes ``[TokenReinsertion, StandInPyramid, *old neck]``: the pyramid gives maps with the channels and
    strides of the old backbone, which is built once and run on small images to see them (no weights are read). It
    reads the last of the new backbone's ``out_indices``.

    What else of the config was meant for the old backbone is taken out or changed, and the log says so: its weights,
    layer-wise decay that does not know CroprViT. ``custom_imports`` gets cropr_mm, and ``custom_hooks`` a
    ``CroprHook`` where there is pruning and no such hook yet. Optimizer and schedule stay, with a warning where the
    optimizer is SGD.
    ``find_unused_parameters`` is set, as a stock neck or head may skip maps, and a skipped map's layers get no
    gradient in the pyramid.

    Args:
        cfg: the config; it is left as it is. The backbone is looked for at ``model.backbone`` and, in trackers and
            semi-supervised detectors, at ``model.detector.backbone``.
        backbone: arguments of :class:`CroprViT`.

    Returns:
        A copy of the config; ``model.backbone`` is ``backbone`` with its type, and nothing else.

    Raises:
        TypeError: cfg is no Config.
        ValueError: there is no backbone, it cannot be built, what it gives is no fixed set of maps, or a setting of
            the new one is wrong. The message names the key.
    """
    if not isinstance(cfg, Config):
        raise TypeError(f'swap_backbone got a {type(cfg).__name__}; a Config is expected, as Config.fromfile gives')
    swapped = copy.deepcopy(cfg)
    where = _holder(swapped)
    holder = swapped.model.detector if where == 'model.detector' else swapped.model
    register_library(swapped)
    settings, vit = _new_backbone(backbone)
    _check_model(swapped, where, vit)
    key = f'{where}.backbone'
    with DefaultScope.overwrite_default_scope(swapped.get('default_scope')), torch.random.fork_rng(devices=[]):
        levels = _levels(holder.backbone, key)

    pyramid = dict(
        type='StandInPyramid',
        in_channels=vit.embed_dims,
        out_channels=list(levels.channels),
        strides=list(levels.strides),
        in_stride=vit.patch_size,
    )
    if levels.readout:
        pyramid['readout'] = True
    if levels.eval_level is not None:
        pyramid['eval_level'] = levels.eval_level
    old_neck = holder.get('neck') or []
    holder.backbone = settings
    holder.neck = [dict(type='TokenReinsertion'), pyramid, *(old_neck if isinstance(old_neck, list) else [old_neck])]
    _forget_weights(swapped, holder, where)
    _add_package(swapped, hook=settings.get('pruning') is not None)
    names = [f'{key[len("model.") :]}.{name}' for name, _ in vit.named_parameters()]
    _fit_optimizer(swapped, f'{key[len("model.") :]}.', names)
    _allow_unused_levels(swapped)
    _warn(swapped, vit, key)
    return swapped


def _holder(cfg: Config) -> str:
    model = cfg.get('model')
    if not isinstance(model, Mapping):
        raise ValueError(
            'the config has no model; a config of a model is expected, not a base that others inherit from'
        )
    for where in HOLDERS:
        holder = model if where == 'model' else model.get('detector')
        if isinstance(holder, Mapping) and holder.get('backbone') is not None:
            if not isinstance(holder['backbone'], Mapping):
                raise ValueError(f'{where}.backbone={holder["backbone"]!r}; a dict with a type is expected')
            if 'type' not in holder['backbone'] or 'type' not in holder:
                raise ValueError(f'{where} or {where}.backbone has no type, so this is not a model of the mm libraries')
            if is_type(holder['backbone'], 'CroprViT'):
                raise ValueError(f"{where}.backbone.type is 'CroprViT' already; change its settings instead")
            return where
    elsewhere = sorted(_backbones(model, 'model'))
    raise ValueError(
        f'the config has no backbone at {" or ".join(f"{where}.backbone" for where in HOLDERS)}; '
        + (f'those at {", ".join(elsewhere)} are not replaced' if elsewhere else f'model has {", ".join(model)}')
    )


def _check_model(cfg: Config, where: str, vit: CroprViT) -> None:
    holder = cfg.model.detector if where == 'model.detector' else cfg.model
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kind = holder.type if isinstance(holder.type, type) else registry.get(holder.type)
    if kind is not None:
        taken = inspect.signature(kind).parameters.values()
        if not any(p.name == 'neck' or p.kind is p.VAR_KEYWORD for p in taken):
            raise ValueError(f'{where}.type={holder.type!r} takes no neck, and the maps for its heads are made in one')
    channels = holder.backbone.get('in_channels', 3)
    if vit.patch_embed.proj.in_channels != channels:
        raise ValueError(
            f'backbone.in_channels={vit.patch_embed.proj.in_channels}; the images have {channels} channels, as the old '
            f'{where}.backbone.in_channels={channels} says'
        )
    several = [name for name in ('semi_train_cfg', 'track_head') if cfg.model.get(name) is not None]
    if several and any(True for _ in vit.pruners.parameters()):
        raise ValueError(
            f'model.{several[0]}: {cfg.model.type} runs its backbone several times in a training step, on images with '
            'labels of their own, so CroprHook cannot supervise a scorer there; valid for pruning.pruner are those '
            "without parameters, such as dict(type='RandomPruner')"
        )


def _backbones(settings: Any, key: str) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name == 'backbone':
                yield f'{key}.{name}'
            else:
                yield from _backbones(value, f'{key}.{name}')


def _new_backbone(backbone: dict[str, Any]) -> tuple[ConfigDict, CroprViT]:
    """The new backbone's settings with their type, and the module on the meta device: no memory, no random numbers."""
    if not isinstance(backbone, Mapping):
        raise ValueError(f'backbone={backbone!r}; a dict with the arguments of CroprViT is expected')
    settings = ConfigDict(type='CroprViT')
    settings.update(copy.deepcopy(dict(backbone)))
    if not is_type(settings, 'CroprViT'):
        raise ValueError(f"backbone.type={settings['type']!r}; 'CroprViT' is expected, or no type")
    valid = [name for name in inspect.signature(CroprViT.__init__).parameters if name != 'self']
    unknown = sorted(set(settings) - {'type', *valid})
    if unknown or 'arch' not in settings:
        problem = f'unknown keys {", ".join(unknown)}' if unknown else 'no arch'
        raise ValueError(f'backbone has {problem}; valid are {", ".join(valid)}')
    with torch.device('meta'):
        return settings, cast(CroprViT, MODELS.build(settings))


# --- what the old backbone gives --------------------------------------------------------------------------------


def _levels(backbone: Mapping[str, Any], key: str) -> Levels:
    """Build a backbone without weights and see what maps it gives, in training and in evaluation."""
    settings = _by_itself({name: value for name, value in backbone.items() if name not in ('init_cfg', 'pretrained')})
    who = f'{key}.type={backbone.get("type")!r}'
    try:
        images, outputs, evaluated = _run(settings)
    except Exception as error:  # what a backbone raises is its own choice
        raise ValueError(f'{who} cannot be built and run here to see what maps it gives: {error}') from error
    maps, readout = _maps(outputs[0], who)
    if any(torch.equal(level, images[0]) for level in maps):
        raise ValueError(f'{who} hands on the image itself, which no map replaces (the recursive neck of DetectoRS)')
    eval_level = None
    if isinstance(evaluated, Tensor):
        alike = [i for i, level in enumerate(maps) if level.shape == evaluated.shape]
        if len(alike) != 1:
            raise ValueError(
                f'{who} gives a lone map {tuple(evaluated.shape)} in evaluation and {_shapes(maps)} in training; one '
                'of that shape among them is expected'
            )
        eval_level = alike[0]
    elif _shapes(_maps(evaluated, who)[0]) != _shapes(maps):
        raise ValueError(f'{who} gives {_shapes(maps)} in training and other maps in evaluation')
    strides = []
    for level, larger in zip(maps, _maps(outputs[-1], who)[0]):
        # From two sizes, as padding adds a cell here and there.
        pixels = images[-1].shape[-1] - (images[0].shape[-1] if len(images) > 1 else 0)
        cells = larger.shape[-1] - (level.shape[-1] if len(images) > 1 else 0)
        if not 0 < cells <= pixels:
            raise ValueError(f'{who} gives maps whose size does not follow the image: {_shapes(maps)}')
        strides.append(round(pixels / cells))
    return Levels(tuple(level.shape[1] for level in maps), tuple(strides), readout, eval_level)


def _by_itself(settings: Any) -> Any:
    """Settings whose norms do not ask for other processes, which mmcv's SyncBN does when it is built."""
    if isinstance(settings, Mapping):
        return {name: 'BN' if value == 'MMSyncBN' else _by_itself(value) for name, value in settings.items()}
    return settings


def _run(settings: dict[str, Any]) -> tuple[list[Tensor], list[Any], Any]:
    """Images of two sizes or one, what a backbone gives for each in training, and for the first in evaluation."""
    try:
        return _run_sizes(settings, 64, 128)
    except Exception:  # too small for it, or
        if 'img_size' in settings:
            # relative positions laid out for that one size (BEiT). Without weights any size will do.
            return _run_sizes({**settings, 'img_size': 224}, 224)
        return _run_sizes(settings, 128, 256)


def _run_sizes(settings: dict[str, Any], *sides: int) -> tuple[list[Tensor], list[Any], Any]:
    old = revert_sync_batchnorm(MODELS.build(settings))
    images = [torch.randn(2, settings.get('in_channels', 3), side, side) for side in sides]
    with torch.no_grad():
        old.train()  # not all of them return themselves
        outputs = [old(image) for image in images]
        old.eval()
        return images, outputs, old(images[0])


def _maps(output: Any, who: str) -> tuple[list[Tensor], bool]:
    """The maps that a backbone gave for two images, and whether each has a vector (a class token) beside it."""
    maps = list(output) if isinstance(output, (list, tuple)) else [output]
    pairs = bool(maps) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in maps)
    readout = pairs and all(isinstance(pair[1], Tensor) and pair[1].ndim == 2 for pair in maps)
    if readout:
        maps = [pair[0] for pair in maps]
    if not isinstance(output, (list, tuple)) or not maps or any(not isinstance(m, Tensor) or m.ndim != 4 for m in maps):
        raise ValueError(f'{who} gives a {type(output).__name__} of {_shapes(maps)}; a tuple of maps is expected')
    if any(len(level) != 2 for level in maps):
        raise ValueError(f'{who} gives maps {_shapes(maps)} in training for a batch of 2; 2 in each are expected')
    return maps, readout


def _shapes(maps: Sequence[Any]) -> str:
    return ', '.join(str(tuple(m.shape)) if isinstance(m, Tensor) else type(m).__name__ for m in maps)


# --- the rest of the config -------------------------------------------------------------------------------------


def _log(message: str, level: int = logging.INFO) -> None:
    print_log(f'swap_backbone: {message}', logger='current', level=level)


def _forget_weights(cfg: Config, holder: ConfigDict, where: str) -> None:
    for settings, key in {id(cfg.model): (cfg.model, 'model'), id(holder): (holder, where)}.values():
        if settings.pop('pretrained', None) is not None:
            _log(f'{key}.pretrained is taken out; weights of the new backbone are its init_cfg')


def _add_package(cfg: Config, hook: bool) -> None:
    imports = dict(cfg.get('custom_imports') or {})
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'cropr_mm' not in names:
        cfg.custom_imports = {**imports, 'imports': [*names, 'cropr_mm']}
    hooks = list(cfg.get('custom_hooks') or [])
    if hook and not any(is_type(entry, 'CroprHook') for entry in hooks):
        cfg.custom_hooks = [*hooks, dict(type='CroprHook')]


def _fit_optimizer(cfg: Config, prefix: str, names: Sequence[str]) -> None:
    """Make ``optim_wrapper`` fit parameters of these names, all of which begin with the prefix."""
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        return
    settings = wrapper.get('paramwise_cfg') or {}
    custom = settings.get('custom_keys') or {}
    scorers = f'{prefix}pruners'
    key = max((key for key in custom if key in scorers), key=len, default=None)
    if key is not None and custom[key].get('lr_mult', 1) != 1 and any(name.startswith(scorers) for name in names):
        custom[scorers] = {**custom[key], 'lr_mult': 1.0}
        _log(
            f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult={custom[key]["lr_mult"]} is for pre-trained '
            f'weights; {scorers} are new and get lr_mult=1.0'
        )
    if is_type(dict(type=wrapper.get('constructor')), *OTHER_LAYER_DECAYS):
        rate = settings.get('layer_decay_rate', settings.get('decay_rate'))
        _log(
            f'optim_wrapper.constructor={wrapper.constructor!r} does not know the layers of CroprViT; '
            f'{LAYER_DECAY} takes its place, with layer_decay_rate={rate}, weakest at the last block'
        )
        wrapper.constructor = LAYER_DECAY
        wrapper.paramwise_cfg = dict(layer_decay_rate=rate, **({'custom_keys': custom} if custom else {}))


def _allow_unused_levels(cfg: Config) -> None:
    if cfg.get('model_wrapper_cfg'):
        cfg.model_wrapper_cfg.setdefault('find_unused_parameters', True)
    else:
        cfg.find_unused_parameters = True


def _warn(cfg: Config, vit: CroprViT, key: str) -> None:
    """Say what stays and may surprise."""
    if len(vit.out_indices) > 1:
        _log(
            f'{key}.out_indices={vit.out_indices}: the pyramid reads block {vit.out_indices[-1]} alone', logging.WARNING
        )
    for holder in HOLDERS:
        settings = cfg.model if holder == 'model' else cfg.model.get('detector') or {}
        if settings.get('init_cfg'):
            _log(f'{holder}.init_cfg holds weights of a model with the old backbone', logging.WARNING)
        images = settings.get('data_preprocessor') or {}
        if images and 'data_preprocessor' not in images and not (images.get('bgr_to_rgb') and images.get('mean')):
            found = ', '.join(f'{name}={images.get(name)}' for name in ('bgr_to_rgb', 'mean', 'std'))
            _log(
                f'{holder}.data_preprocessor has {found}, which the old weights wanted; most weights of ViTs want '
                'bgr_to_rgb=True and a mean and std of their own',
                logging.WARNING,
            )
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if is_type(optimizer, 'SGD'):
        _log(sgd_warning('optim_wrapper.optimizer', optimizer.get('lr')), logging.WARNING)
    if cfg.get('load_from'):
        _log(
            f'load_from={cfg.load_from!r} holds the old backbone: only what has the same name and shape is loaded',
            logging.WARNING,
        )
