"""From a config, and a checkpoint, to a model for inference outside of a runner."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch import nn

from ..checkpoint import load_every_parameter, read_checkpoint
from ..engine import OracleHook
from ..engine.bfloat16 import let_mmcv_take_bfloat16
from ..utils.checks import is_type


def check_model(cfg: Config) -> None:
    """Raise ValueError where a config has no model."""
    if not isinstance(cfg.get('model'), Mapping) or 'type' not in cfg.model:
        name = f'config {cfg.filename!r}' if cfg.filename else 'the config'
        raise ValueError(
            f'{name}: model={cfg.get("model")!r}; a dict with a type is expected (bases, that others inherit from, '
            'may have none)'
        )


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config for inference on one device, with initial weights."""
    check_model(cfg)
    scope = cfg.get('default_scope', 'mmengine')
    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != scope:
        DefaultScope.get_instance(f'{scope}-{time.time()}', scope_name=scope)
    settings = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:  # mmpretrain's configs have it beside the model
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(settings))
    for hook in cfg.get('custom_hooks') or ():
        if is_type(hook, OracleHook.__name__):  # that pruner reads the labels outside of a runner, too
            HOOKS.build(hook).attach(model)
    let_mmcv_take_bfloat16()
    model.eval()  # not every model returns itself (knowledge distillation in mmdetection)
    return model


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the model of a config for inference and load a checkpoint into it.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it is cut off, or lacks parameters of the model, which would stay random.
    """
    weights, meta = read_checkpoint(checkpoint)
    model = build_model(cfg)
    load_every_parameter(model, weights, f'{checkpoint}:')
    model.dataset_meta = meta.get('dataset_meta', {})
    return model
