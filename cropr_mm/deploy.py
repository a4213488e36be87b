"""Stripped checkpoints: folded scorers, no auxiliary parts, no optimizer; as small as the dense model's."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from .checkpoint.locate import shorten
from .checkpoint.read import GRIDS, load_address
from .checkpoint.state_dict import WRAPPED, weights_of
from .models import CroprViT
from .tokens import SparseFeature
from .utils.checks import is_type
from .utils.compat import remove_prefix
from .utils.io import whole_file

SUFFIXES = ('.pth', '.safetensors')
TOLERANCE = 1e-5
"""Largest difference between the outputs before and after, as a share of the largest value (at least 1)."""


def pruned_backbones(settings: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All configs of a CroprViT with pruning inside a config, each with its key."""
    if isinstance(settings, Mapping):
        if is_type(settings, 'CroprViT') and settings.get('pruning'):
            yield key, settings
        for name, part in settings.items():
            yield from pruned_backbones(part, f'{key}.{name}')
    elif isinstance(settings, (list, tuple)):
        for i, part in enumerate(settings):
            yield from pruned_backbones(part, f'{key}.{i}')


def deployed_config(cfg: Config) -> tuple[Config, list[str]]:
    """The config that builds the folded model, and the ``KEY=VALUE`` options that make it from the given one.

    Raises:
        ValueError: the model has no pruned CroprViT, one without a pruner, or is folded as it is.
    """
    deployed = copy.deepcopy(cfg)
    found = list(pruned_backbones(deployed.model, 'model'))
    if not found:
        raise ValueError('model: there is no CroprViT with pruning in this config, so there is nothing to fold')
    for key, backbone in found:
        pruner = backbone.pruning.get('pruner')
        if not isinstance(pruner, Mapping):
            raise ValueError(
                f"{key}.pruning.pruner={pruner!r}; a config with a type is expected, such as dict(type='RandomPruner')"
            )
        if backbone.pruning.get('deploy') or pruner.get('deploy'):
            raise ValueError(f'{key}.pruning.deploy=True: give the config that the model was trained with')
        backbone.pruning.deploy = True
    return deployed, [f'{key}.pruning.deploy=True' for key, _ in found]


def read_checkpoint(path: str, ema: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and meta information of a checkpoint that mmengine's runner saved.

    With mmengine's EMAHook, ``state_dict`` holds the averaged weights and ``ema_state_dict`` those that the optimizer
    moved.

    Args:
        path: a file, or an address that mmengine knows.
        ema: whether averaged weights are wanted where there are some.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is refused or damaged, has no weights, or ``ema=False`` and no others than the saved ones.
    """
    checkpoint = load_address(path)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f'{path}: holds {type(checkpoint).__name__}; a dict of tensors, perhaps under state_dict, is expected'
        )
    try:
        weights = weights_of(checkpoint)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if not ema:
        moved = checkpoint.get('ema_state_dict')
        if not isinstance(moved, Mapping):
            raise ValueError(f'{path}: holds no moving average (EMAHook), so there are no other weights to choose')
        weights.update({remove_prefix(k, 'module.'): v for k, v in moved.items() if k.startswith('module.')})
    if not weights:
        raise ValueError(f'{path}: holds no weights (a dict of tensors, perhaps under state_dict, is expected)')
    meta = checkpoint.get('meta')
    return weights, dict(meta) if isinstance(meta, Mapping) else {}


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must fit exactly.

    Args:
        model: of any kind.
        weights: name → tensor.
        source: where they come from, for the message.

    Raises:
        ValueError: names what is missing, left over or of another shape.
    """
    keys = load_what_fits(model, weights, source)
    parts = (('missing', keys.missing_keys), ('left over', keys.unexpected_keys))
    if any(names for _, names in parts):
        listed = '; '.join(f'{what}: {shorten(names, 8)}' for what, names in parts if names)
        raise ValueError(f'{source} does not fit the model of the config ({listed})')


def load_what_fits(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> Any:
    """Load weights, some of which may be missing or left over; returns PyTorch's lists of both.

    For the arguments see :func:`load_strictly`.

    Raises:
        ValueError: names what is of another shape, or what a CroprViT does not take.
    """
    try:
        return model.load_state_dict(weights, strict=False)
    except ValueError as error:
        raise ValueError(f'{source.rstrip(":")}: {error}') from error
    except RuntimeError as error:  # shapes
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f'{source} does not fit the model of the config ({shorten(lines, 3)})') from error


def load_every_parameter(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must leave no parameter as it was; what is left over does not matter.

    For the arguments see :func:`load_strictly`.

    Raises:
        ValueError: names what is missing or of another shape.
    """
    missing = {name.replace(WRAPPED, '') for name in load_what_fits(model, weights, source).missing_keys}
    names = [name.replace(WRAPPED, '') for name, _ in model.named_parameters()]
    lacking = [name for name in names if name in missing]
    if lacking:
        raise ValueError(f'{source} does not fit the model of the config; missing: {shorten(lacking, 8)}')


def fold_into(trained: nn.Module, deployed: nn.Module, tolerance: float = TOLERANCE) -> float:
    """Fold the scorers of a trained model, load it into the one for inference and see that both do the same.

    Args:
        trained: with its weights loaded; its auxiliary parts are gone afterwards.
        deployed: built with ``pruning.deploy=True``; gets the weights.
        tolerance: see :data:`TOLERANCE`.

    Returns:
        The largest difference of the backbones' features, on random images.

    Raises:
        ValueError: the difference exceeds the tolerance.
    """
    before = _features(trained)
    for module in trained.modules():
        if isinstance(module, CroprViT):
            module.switch_to_deploy()
    load_strictly(deployed, trained.state_dict(), 'the folded model')
    after = _features(deployed)
    difference = max(((a - b).abs().max() / max(1.0, float(a.abs().max()))).item() for a, b in zip(before, after))
    if not difference <= tolerance:
        raise ValueError(
            f'the folded model differs from the trained one by {difference:.2g} (at most {tolerance:g} is allowed), '
            'so nothing was written; does the pruner fold without changing its scores?'
        )
    return difference


@torch.no_grad()
def _features(model: nn.Module) -> list[Tensor]:
    """Features of all backbones for two random images each, tokens in raster order."""
    features: list[Tensor] = []
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]):
        for backbone in (m for m in model.modules() if isinstance(m, CroprViT)):
            torch.manual_seed(0)
            parameter = backbone.patch_embed.proj.weight
            sides = [side * backbone.patch_size for side in backbone.grid]
            images = torch.randn(2, parameter.shape[1], *sides).to(parameter)
            for level in backbone(images):
                features += _parts(level)
    model.train(training)
    return features


def _parts(level: SparseFeature) -> list[Tensor]:
    dense = level.to_dense()
    return [dense] if level.prefix is None or not level.prefix.numel() else [dense, level.prefix]


def save_weights(path: str | Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write weights and meta information, whole or not at all.

    Args:
        path: ends in ``.pth``, mmengine's format, or ``.safetensors``, with ``meta`` and the
            patch grids as JSON in the header.
        weights: name → tensor.
        meta: what mmengine keeps beside the weights (``dataset_meta``, ``cfg``, ...).

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{str(path)!r}: a file name that ends in {" or ".join(SUFFIXES)} is expected')
    tensors = OrderedDict((k, v.detach().cpu().contiguous().clone()) for k, v in weights.items())
    if hasattr(weights, '_metadata'):  # of a state dict: a CroprViT's patch grid, among others
        tensors._metadata = weights._metadata  # type: ignore[attr-defined]
    with whole_file(path) as partial:
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file

            header = {'format': 'pt', 'meta': json.dumps(dict(meta), default=str)}
            grids = {k: v['grid'] for k, v in getattr(weights, '_metadata', {}).items() if 'grid' in v}
            if grids:
                header[GRIDS] = json.dumps(grids)
            save_file(tensors, partial, metadata=header)
            partial.chmod(0o644)  # the writer leaves it readable by its owner alone
        else:
            torch.save(dict(meta=dict(meta), state_dict=tensors), partial)
    return path
