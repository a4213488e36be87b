"""The mm library that a config is for."""

from __future__ import annotations

import importlib
import importlib.util

from mmengine.config import Config

_PACKAGES = dict(mmseg='mmsegmentation', mmdet='mmdet', mmpretrain='mmpretrain')


def is_segmentation(cfg: Config) -> bool:
    """Whether a config is for mmsegmentation."""
    return cfg.get('default_scope') == 'mmseg'


def register_library(cfg: Config) -> None:
    """Register the modules of the config's own library, and of no other."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope == 'mmengine':
        return
    if importlib.util.find_spec(scope) is None:
        package = _PACKAGES.get(scope, scope)
        raise ModuleNotFoundError(
            f'default_scope={scope!r} of the config needs the package {package}, which is '
            f'not installed: pip install {package}'
        )
    try:
        utils = importlib.import_module(f'{scope}.utils')
        if hasattr(utils, 'register_all_modules'):
            utils.register_all_modules(init_default_scope=False)
    except ModuleNotFoundError as error:  # mmpretrain needs torchvision, which it does not declare
        package = _PACKAGES.get(scope, scope)
        raise ModuleNotFoundError(
            f'default_scope={scope!r} of the config needs the package {package}, and that the module {error.name}, '
            f'which is not installed'
        ) from error
