"""timm, the other implementation that tests compare with; never part of what users run."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Set-up installs timm and torchvision here, without what they depend on (tools/setup_env.py).
FOLDER = Path(sys.prefix) / 'parity'
# Operators that torchvision expects from its binary, which the folder's build may be unable to load beside this torch.
OPERATORS = {
    'nms': 'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms': 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}
_library: torch.library.Library | None = None  # lives as long as the definitions in it are needed


def import_timm() -> ModuleType:
    """Import timm from its own folder, or else from this environment; skip the test where there is neither.

    The folder is on ``sys.path`` only for the import itself. The mm libraries then still find no torchvision, unless
    they look in ``sys.modules``, where a usable one stands.
    """
    if 'timm' in sys.modules:
        return sys.modules['timm']
    if not FOLDER.exists():
        if importlib.util.find_spec('timm') is None:
            pytest.skip(f'needs timm in {FOLDER} (make setup) or installed', allow_module_level=True)
        return importlib.import_module('timm')
    sys.path.insert(0, str(FOLDER))
    try:
        try:
            importlib.import_module('torchvision')
        except RuntimeError:  # operator torchvision::nms does not exist
            for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
                del sys.modules[name]
            _define_operators()
        # timm imports submodules when it is imported and none later, so the folder can leave the path again.
        return importlib.import_module('timm')
    finally:
        sys.path.remove(str(FOLDER))


def _define_operators() -> None:
    global _library
    _library = torch.library.Library('torchvision', 'FRAGMENT')
    for name, schema in OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)
