"""Loading checkpoints through mmengine: with PyTorch's unpickling protection on, and from .safetensors files.

Since PyTorch 2.6 ``torch.load`` by default refuses every class that is not allow-listed (``weights_only=True``).
A checkpoint that mmengine's runner saves holds such classes (the history of each logged value, NumPy
scalars, ...), so mmengine 0.10 cannot resume its own runs. :func:`allow_mmengine_checkpoints` allow-lists
what these checkpoints hold and no more; a file that asks for anything else is refused as before.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

# Functions that live in a class are pickled as getattr(class, name). These are the ones that mmengine saves.
_CLASS_FUNCTIONS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}
_NUMPY_SCALARS = (np.bool_, np.int32, np.int64, np.float32, np.float64)


def _class_function(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` inside a checkpoint; the real one would open the way to any object."""
    if not isinstance(owner, type) or name not in _CLASS_FUNCTIONS.get(owner, ()):
        allowed = ', '.join(f'{cls.__name__}.{n}' for cls, names in _CLASS_FUNCTIONS.items() for n in names)
        raise pickle.UnpicklingError(
            f'the checkpoint asks for attribute {name!r} of {owner!r}; only {allowed} are allowed'
        )
    return getattr(owner, name)


def _under(full_name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that goes by another name.

    PyTorch before 2.6 allow-lists by ``__module__`` and ``__name__`` and takes no pairs of function and name.
    """

    def stand_in(*args: Any) -> Any:
        return function(*args)

    stand_in.__module__, stand_in.__name__ = full_name.rsplit('.', 1)
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


@cache
def _allowed() -> tuple[Any, ...]:
    """What an mmengine checkpoint may ask for; made once, so that allow-listing it again adds nothing."""
    numpy_core = import_module('numpy._core.multiarray' if hasattr(np, '_core') else 'numpy.core.multiarray')
    # NumPy 2 renamed numpy.core to numpy._core; a file names whichever NumPy wrote it.
    renamed = (
        _under(f'numpy.{core}.multiarray.{function}', getattr(numpy_core, function))
        for function in ('_reconstruct', 'scalar')
        for core in ('core', '_core')
    )
    return (
        *_CLASS_FUNCTIONS,
        _under('builtins.getattr', _class_function),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(scalar)) for scalar in _NUMPY_SCALARS),
        *renamed,
    )


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read what mmengine's runner saves: weights, optimizer, schedulers and message hub.

    Called when ``cropr_mm`` is imported; calling it again changes nothing. The protection itself is never switched
    off. PyTorch 2.4 and 2.5, where mmengine loads without it, need the list for ``weights_only=True``, as ``init_cfg``
    of a CroprViT reads; before 2.4 there is none to add to.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(list(_allowed()))


def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a .safetensors file the way mmengine's loaders return a checkpoint: ``state_dict`` and ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
    """
    from safetensors import safe_open

    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    device = str(torch.device(map_location)) if isinstance(map_location, (str, torch.device)) else 'cpu'
    with safe_open(filename, framework='pt', device=device) as file:
        header, names = file.metadata() or {}, list(file.keys())
        return dict(state_dict={key: file.get_tensor(key) for key in names}, meta=_json(header.get('meta')))


def _json(text: str | None) -> dict[str, Any]:
    """The ``meta`` that this package writes; other projects may use the name for something else."""
    try:
        meta = json.loads(text or '{}')
    except ValueError:
        meta = None
    return meta if isinstance(meta, dict) else {}


def allow_safetensors() -> None:
    """Let mmengine read local .safetensors files wherever it takes a checkpoint (``load_from``, ``init_cfg``)."""
    # mmengine takes the prefixes for regular expressions; one that begins like this comes after all addresses.
    CheckpointLoader.register_scheme(r'.*\.safetensors$', load_from_safetensors, force=True)


def check_checkpoint(path: str | os.PathLike[str], key: str = 'checkpoint') -> Path:
    """Find out early, in plain words, that a checkpoint file is missing or cut off.

    Reads the file's directory only, so it costs nothing on a large file.

    Args:
        path: A local file in PyTorch's or the safetensors format.
        key: The option or config key that named the file, for the message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, or shorter than it says.
    """
    file = Path(path)
    if not file.is_file():
        there = sorted(p.name for p in file.parent.glob('*') if p.suffix in ('.pth', '.pt', '.safetensors'))
        hint = f'checkpoints in that folder: {", ".join(there)}' if there else 'that folder holds none'
        raise FileNotFoundError(f'{key}={str(path)!r}: no such file ({hint})')
    size = file.stat().st_size
    if size == 0:
        raise ValueError(f'{key}={str(path)!r} is an empty file')
    with file.open('rb') as stream:
        head = stream.read(8)
    if file.suffix == '.safetensors':
        complete = len(head) == 8 and _safetensors_size(file, int.from_bytes(head, 'little')) == size
    elif head.startswith(b'PK'):
        complete = zipfile.is_zipfile(file)  # the directory stands at the end of the file
    else:
        complete = head[:1] == b'\x80'  # a pickle, as PyTorch before 1.6 wrote; only loading can tell its end
    if not complete:
        raise ValueError(
            f'{key}={str(path)!r} is not a complete checkpoint: the file is cut off after '
            f'{size} bytes or was never one. Copy, download or train it again.'
        )
    return file


def _safetensors_size(file: Path, header: int) -> int:
    """Bytes that a safetensors file with this header length must have; -1 where the header is broken."""
    try:
        with file.open('rb') as stream:
            stream.seek(8)
            entries = json.loads(stream.read(min(header, file.stat().st_size)))
        ends = (entry['data_offsets'][1] for name, entry in entries.items() if name != '__metadata__')
        return 8 + header + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return -1
