"""timm and mmpretrain from the folder that set-up puts them in; never part of what users run."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Set-up installs timm, mmpretrain and torchvision here, without what they depend on (tools/setup_env.py).
FOLDER = Path(sys.prefix) / 'parity'
# Operators that torchvision expects from its binary, which the folder's build may be unable to load beside this torch.
OPERATORS = {
    'nms': 'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms': 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}
_library: torch.library.Library | None = None  # lives as long as the definitions in it are needed


def import_timm() -> ModuleType:
    """Import timm from its own folder, or else from this environment; skip the test where there is neither."""
    # timm imports submodules when it is imported and none later.
    return _import('timm')


def import_mmpretrain() -> ModuleType:
    """Import mmpretrain likewise, all of its registries included; skip the test also where mmcv is missing."""
    pytest.importorskip('mmcv')
    # The registries import these when they are first asked, which would be after the folder has left the path.
    parts = ('datasets', 'engine', 'evaluation', 'models', 'structures', 'visualization')
    return _import('mmpretrain', *parts)


def _import(name: str, *parts: str) -> ModuleType:
    """Import a package and its submodules.

    The folder is on ``sys.path`` only for the import itself. The mm libraries then still find no torchvision, unless
    they look in ``sys.modules``, where a usable one stands.
    """
    if name in sys.modules:
        return sys.modules[name]
    with _folder_on_path():
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name} in {FOLDER} (make setup) or installed', allow_module_level=True)
        module = importlib.import_module(name)
        for part in parts:
            importlib.import_module(f'{name}.{part}')
    return module


@contextmanager
def _folder_on_path() -> Iterator[None]:
    if not FOLDER.exists():
        yield
        return
    sys.path.insert(0, str(FOLDER))
    importlib.invalidate_caches()
    try:
        try:
            importlib.import_module('torchvision')
        except RuntimeError:  # operator torchvision::nms does not exist
            for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
                del sys.modules[name]
            _define_operators()
        yield
    finally:
        sys.path.remove(str(FOLDER))


def _define_operators() -> None:
    global _library
    _library = torch.library.Library('torchvision', 'FRAGMENT')
    for name, schema in OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)
