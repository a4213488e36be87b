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

from .engine.checks import HOLDERS, arguments_of, holders, sgd_warning
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


class FeatureMaps(NamedTuple):
    """What a backbone returns; the arguments of :class:`~cropr_mm.models.necks.StandInPyramid`."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    readout: bool = False
    eval_level: int | None = None


def swap_backbone(cfg: Config, backbone: dict[str, Any]) -> Config:
    """Replace the backbone of a config; everything after it stays as it is.

    The neck becomes ``[TokenReinsertion, StandInPyramid, *old neck]``: the pyramid makes feature maps with the
    channels and strides of those of the old backbone, which is built once and run on small images to find them (no
    weights are read). It reads the last of the new backbone's ``out_indices``.

    What else of the config was meant for the old backbone is removed or changed, and the log says so: its weights, and
    layer-wise decay that does not know CroprViT. ``custom_imports`` gets cropr_mm, and ``custom_hooks`` a
    ``CroprHook`` where there is pruning and no such hook yet. Optimizer and schedule stay, with a warning where the
    optimizer is SGD.
    ``find_unused_parameters`` is set, as a stock neck or head may skip feature maps, and the pyramid's layers for a
    skipped one get no gradient.

    Args:
        cfg: the config, which is not changed. The backbone is expected at ``model.backbone`` or, in trackers and
            semi-supervised detectors, at ``model.detector.backbone``.
        backbone: arguments of :class:`CroprViT`.

    Returns:
        A copy of the config; ``model.backbone`` is ``backbone`` with its type, and nothing else.

    Raises:
        TypeError: cfg is no Config.
        ValueError: there is no backbone, it cannot be built, it returns no fixed set of feature maps, or a setting of
            the new one is wrong. The message names the key.
    """
    if not isinstance(cfg, Config):
        raise TypeError(f'swap_backbone got a {type(cfg).__name__}; a Config is expected, as Config.fromfile gives')
    swapped = copy.deepcopy(cfg)
    where, holder = _holder(swapped)
    register_library(swapped)
    settings, vit = _new_backbone(backbone)
    _check_model(swapped, where, holder, vit)
    key = f'{where}.backbone'
    with DefaultScope.overwrite_default_scope(swapped.get('default_scope')), torch.random.fork_rng(devices=[]):
        maps = _feature_maps(holder.backbone, key)

    pyramid = dict(
        type='StandInPyramid',
        in_channels=vit.embed_dims,
        out_channels=list(maps.channels),
        strides=list(maps.strides),
        in_stride=vit.patch_size,
    )
    if maps.readout:
        pyramid['readout'] = True
    if maps.eval_level is not None:
        pyramid['eval_level'] = maps.eval_level
    old_neck = holder.get('neck') or []
    holder.backbone = settings
    holder.neck = [dict(type='TokenReinsertion'), pyramid, *(old_neck if isinstance(old_neck, list) else [old_neck])]
    _forget_weights(swapped, holder, where)
    _add_package(swapped, hook=settings.get('pruning') is not None)
    names = [f'{key[len("model.") :]}.{name}' for name, _ in vit.named_parameters()]
    _fit_optimizer(swapped, f'{key[len("model.") :]}.', names)
    _allow_unused_maps(swapped)
    _warn(swapped, vit, key)
    return swapped


def _holder(cfg: Config) -> tuple[str, ConfigDict]:
    """The part of a config that has the backbone, and its key."""
    if not isinstance(cfg.get('model'), Mapping):
        raise ValueError(
            'the config has no model; a config of a model is expected, not a base that others inherit from'
        )
    for where, holder in holders(cfg):
        if holder.get('backbone') is not None:
            if not isinstance(holder['backbone'], Mapping):
                raise ValueError(f'{where}.backbone={holder["backbone"]!r}; a dict with a type is expected')
            if 'type' not in holder['backbone'] or 'type' not in holder:
                raise ValueError(f'{where} or {where}.backbone has no type, so this is not a model of the mm libraries')
            if is_type(holder['backbone'], 'CroprViT'):
                raise ValueError(f"{where}.backbone.type is 'CroprViT' already; change its settings instead")
            return where, holder
    elsewhere = sorted(_backbones(cfg.model, 'model'))
    raise ValueError(
        f'the config has no backbone at {" or ".join(f"{where}.backbone" for where in HOLDERS)}; '
        + (f'those at {", ".join(elsewhere)} are not replaced' if elsewhere else f'model has {", ".join(cfg.model)}')
    )


def _check_model(cfg: Config, where: str, holder: ConfigDict, vit: CroprViT) -> None:
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kind = holder.type if isinstance(holder.type, type) else registry.get(holder.type)
    if kind is not None:
        taken = inspect.signature(kind).parameters.values()
        if not any(p.name == 'neck' or p.kind is p.VAR_KEYWORD for p in taken):
            raise ValueError(
                f'{where}.type={holder.type!r} takes no neck, and the feature maps for its heads are made in one'
            )
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
            'labels of their own, so CroprHook cannot supervise a pruner there; valid for pruning.pruner are those '
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
    valid = arguments_of(CroprViT) or []
    unknown = sorted(set(settings) - {'type', *valid})
    if unknown or 'arch' not in settings:
        problem = f'unknown keys {", ".join(unknown)}' if unknown else 'no arch'
        raise ValueError(f'backbone has {problem}; valid are {", ".join(valid)}')
    with torch.device('meta'):
        return settings, cast(CroprViT, MODELS.build(settings))


# --- the feature maps of the old backbone -----------------------------------------------------------------------


def _feature_maps(backbone: Mapping[str, Any], key: str) -> FeatureMaps:
    """Build a backbone without weights and find the feature maps that it returns, in training and in evaluation."""
    settings = _by_itself({name: value for name, value in backbone.items() if name not in ('init_cfg', 'pretrained')})
    who = f'{key}.type={backbone.get("type")!r}'
    try:
        images, outputs, evaluated = _run(settings)
    except Exception as error:  # what a backbone raises is its own choice
        raise ValueError(f'{who} cannot be built and run here to find its feature maps: {error}') from error
    maps, readout = _maps(outputs[0], who)
    if any(torch.equal(feature, images[0]) for feature in maps):
        raise ValueError(
            f'{who} hands on the image itself, which no feature map replaces (the recursive neck of DetectoRS)'
        )
    eval_level = None
    if isinstance(evaluated, Tensor):
        alike = [i for i, feature in enumerate(maps) if feature.shape == evaluated.shape]
        if len(alike) != 1:
            raise ValueError(
                f'{who} returns one feature map {tuple(evaluated.shape)} in evaluation and {_shapes(maps)} in '
                'training; one of that shape among them is expected'
            )
        eval_level = alike[0]
    elif _shapes(_maps(evaluated, who)[0]) != _shapes(maps):
        raise ValueError(f'{who} returns {_shapes(maps)} in training and other feature maps in evaluation')
    strides = []
    for small, large in zip(maps, _maps(outputs[-1], who)[0]):
        # From two sizes, as padding adds a cell here and there.
        pixels = images[-1].shape[-1] - (images[0].shape[-1] if len(images) > 1 else 0)
        cells = large.shape[-1] - (small.shape[-1] if len(images) > 1 else 0)
        if not 0 < cells <= pixels:
            raise ValueError(f'{who} returns feature maps whose size does not follow the image: {_shapes(maps)}')
        strides.append(round(pixels / cells))
    return FeatureMaps(tuple(feature.shape[1] for feature in maps), tuple(strides), readout, eval_level)


def _by_itself(settings: Any) -> Any:
    """Settings whose norms do not ask for other processes, which mmcv's SyncBN does when it is built."""
    if isinstance(settings, Mapping):
        return {name: 'BN' if value == 'MMSyncBN' else _by_itself(value) for name, value in settings.items()}
    return settings


def _run(settings: dict[str, Any]) -> tuple[list[Tensor], list[Any], Any]:
    """Images of two sizes or one, what a backbone returns for each in training, and for the first in evaluation."""
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
    """The feature maps that a backbone returned for two images, and whether each has a [CLS] token beside it."""
    maps = list(output) if isinstance(output, (list, tuple)) else [output]
    pairs = bool(maps) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in maps)
    readout = pairs and all(isinstance(pair[1], Tensor) and pair[1].ndim == 2 for pair in maps)
    if readout:
        maps = [pair[0] for pair in maps]
    if not isinstance(output, (list, tuple)) or not maps or any(not isinstance(m, Tensor) or m.ndim != 4 for m in maps):
        raise ValueError(
            f'{who} returns a {type(output).__name__} of {_shapes(maps)}; a tuple of feature maps is expected'
        )
    if any(len(feature) != 2 for feature in maps):
        raise ValueError(
            f'{who} returns feature maps {_shapes(maps)} in training for a batch of 2; 2 in each are expected'
        )
    return maps, readout


def _shapes(maps: Sequence[Any]) -> str:
    return ', '.join(str(tuple(m.shape)) if isinstance(m, Tensor) else type(m).__name__ for m in maps)


# --- the rest of the config -------------------------------------------------------------------------------------


def _log(message: str, level: int = logging.INFO) -> None:
    print_log(f'swap_backbone: {message}', logger='current', level=level)


def _forget_weights(cfg: Config, holder: ConfigDict, where: str) -> None:
    for settings, key in {id(cfg.model): (cfg.model, 'model'), id(holder): (holder, where)}.values():
        if settings.pop('pretrained', None) is not None:
            _log(f'{key}.pretrained is removed; weights of the new backbone are its init_cfg')


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
    pruners = f'{prefix}pruners'
    key = max((key for key in custom if key in pruners), key=len, default=None)
    slowed = key is not None and 'pruners' not in key and custom[key].get('lr_mult', 1) != 1
    if slowed and any(name.startswith(pruners) for name in names):
        custom[pruners] = {**custom[key], 'lr_mult': 1.0}
        _log(
            f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult={custom[key]["lr_mult"]} is for pre-trained '
            f'weights; {pruners} are new and get lr_mult=1.0'
        )
    if is_type(dict(type=wrapper.get('constructor')), *OTHER_LAYER_DECAYS):
        rate = settings.get('layer_decay_rate', settings.get('decay_rate'))
        _log(
            f'optim_wrapper.constructor={wrapper.constructor!r} does not know the layers of CroprViT; '
            f'{LAYER_DECAY} takes its place, with layer_decay_rate={rate}, weakest at the last block'
        )
        wrapper.constructor = LAYER_DECAY
        wrapper.paramwise_cfg = dict(layer_decay_rate=rate, **({'custom_keys': custom} if custom else {}))


def _allow_unused_maps(cfg: Config) -> None:
    if cfg.get('model_wrapper_cfg'):
        cfg.model_wrapper_cfg.setdefault('find_unused_parameters', True)
    else:
        cfg.find_unused_parameters = True


def _warn(cfg: Config, vit: CroprViT, key: str) -> None:
    """Log what stays and may surprise."""
    if len(vit.out_indices) > 1:
        _log(
            f'{key}.out_indices={vit.out_indices}: the pyramid reads block {vit.out_indices[-1]} alone', logging.WARNING
        )
    for where, settings in holders(cfg):
        if settings.get('init_cfg'):
            _log(f'{where}.init_cfg holds weights of a model with the old backbone', logging.WARNING)
        images = settings.get('data_preprocessor') or {}
        if images and 'data_preprocessor' not in images and not (images.get('bgr_to_rgb') and images.get('mean')):
            found = ', '.join(f'{name}={images.get(name)}' for name in ('bgr_to_rgb', 'mean', 'std'))
            _log(
                f'{where}.data_preprocessor has {found}, as the old weights need it; most weights of ViTs need '
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
