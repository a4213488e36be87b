"""A trained model made ready for inference: scorers folded, no auxiliary parts; as small as the dense model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from .checkpoint import load_strictly
from .models import CroprViT
from .models.cropr_vit import fold_scorers
from .tokens import SparseFeature
from .utils.checks import is_type

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
        ValueError: the model has no pruned CroprViT, one without a pruner, or is folded already.
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


def fold_into(trained: nn.Module, deployed: nn.Module, tolerance: float = TOLERANCE) -> float:
    """Fold the scorers of a trained model, load it into the one for inference and compare what both compute.

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
    fold_scorers(trained)
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
