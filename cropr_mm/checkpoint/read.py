"""The one function that opens a checkpoint file, .pth or .safetensors, without running anything that it holds."""

from __future__ import annotations

import io
import json
import os
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .archive import look_into
from .unpickle import Refused, Unpickler

# In the header of a .safetensors file: JSON of the place of each CroprViT ('backbone', '') → its patch grid [H, W].
GRIDS = 'cropr_mm.grids'


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or holds more than a checkpoint needs."""


def load_file(source: str | BinaryIO, map_location: Any = 'cpu', name: str = '') -> Any:
    """Read a checkpoint without running anything that it holds.

    Args:
        source: a local file, or a stream of one that PyTorch wrote.
        map_location: see ``torch.load``; of a .safetensors file a device.
        name: what the message calls a stream.

    Returns:
        What was saved. Of a .safetensors file: ``state_dict``, with the patch grids of its CroprViTs in the metadata as
        a torch file keeps them, and ``meta``.

    Raises:
        FileNotFoundError: no such file; the message lists the checkpoints beside it.
        CheckpointError: the file cannot be read, or is refused.
    """
    name = name or str(source)
    if isinstance(source, str) and not os.path.isfile(source):
        raise FileNotFoundError(f'{name!r}: {_no_such_file(Path(source))}')
    try:
        if isinstance(source, str) and source.endswith('.safetensors'):
            return _without_config(_load_safetensors(source, map_location))
        return _without_config(torch.load(source, map_location=map_location, **_pickle_module(source)))
    except Refused as error:
        raise CheckpointError(
            f'{name}: cannot be read as a checkpoint; it holds more than weights and plain data: {error}. Save the '
            "weights alone: torch.save(checkpoint['state_dict'], path)"
        ) from error
    except Exception as error:  # every reader has its own exceptions for a damaged file
        reason = next(iter(str(error).splitlines()), '')
        raise CheckpointError(
            f'{name}: cannot be read as a checkpoint; the file is damaged or cut short, or was never one '
            f'({type(error).__name__}: {reason})'
        ) from error


def _without_config(content: Any) -> Any:
    """Drop ``meta.config``, text that mmcv saved and that mmengine's ``Runner.resume`` would run as Python."""
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return content


def _pickle_module(source: str | BinaryIO) -> dict[str, Any]:
    """The argument that has ``torch.load`` read this file by :class:`Unpickler`."""
    if isinstance(source, str):
        with open(source, 'rb') as stream:
            total, sizes = look_into(stream)
    else:
        total, sizes = look_into(source)
    # PyTorch would unpack an archive of its first releases, whatever it begins with.
    if sizes is None and isinstance(source, str) and tarfile.is_tarfile(source):
        raise Refused('an archive (tar)')
    own: dict[str, Any] = dict(storage_sizes=sizes, total=total, storages=set())
    reader: Any = type('CheckpointUnpickler', (Unpickler,), own)
    if os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0').lower() in ('1', 'y', 'yes', 'true'):
        if sizes is not None:
            _check_storages(source, reader)
        return dict(weights_only=True)  # PyTorch then takes no other reader than its own

    def load(file: BinaryIO, **options: Any) -> Any:
        """What stands around the pickle before PyTorch 1.6; the last of it lists the storages that follow."""
        content = reader(file, **options).load()
        follow = isinstance(content, list)
        if (reader.storages or follow) and not (follow and {*content} == reader.storages):
            raise Refused('storages that do not follow, or that nothing asked for')
        return content

    module: Any = types.ModuleType('cropr_mm.checkpoint.unpickle')
    module.Unpickler, module.load = reader, load
    return dict(pickle_module=module)


def _check_storages(source: str | BinaryIO, reader: Any) -> None:
    """Compare the sizes of storages, which the own reader of PyTorch 2.1 does not do, without reading them."""

    class Reader(reader):
        def find_class(self, module: str, name: str) -> Any:
            if module == 'torch' and name.endswith('Storage'):
                return torch.serialization.StorageType(name)
            return super().find_class(module, name)

        def persistent_load(self, pid: Any) -> torch.storage.TypedStorage:
            size = pid[4] * torch._utils._element_size(pid[1].dtype)
            storage = torch.UntypedStorage(size, device='meta')
            return torch.storage.TypedStorage(wrap_storage=storage, dtype=pid[1].dtype, _internal=True)

    with zipfile.ZipFile(source) as archive:
        (name,) = (name for name in archive.namelist() if name.partition('/')[2] == 'data.pkl')
        Reader(io.BytesIO(archive.read(name)), encoding='utf-8').load()
    if not isinstance(source, str):
        source.seek(0)


def _load_safetensors(path: str, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    with safe_open(path, framework='pt') as file:
        header, names = file.metadata() or {}, list(file.keys())
        # By PyTorch, for which 'cuda' is the device of this process and not always the first.
        state: Any = OrderedDict((name, file.get_tensor(name).to(device)) for name in names)
    grids = _json(header.get(GRIDS))
    state._metadata = {place: {'grid': grid} for place, grid in grids.items()}
    return dict(state_dict=state, meta=_json(header.get('meta')))


def _json(text: str | None) -> dict[str, Any]:
    """What this package writes; other projects may use the name for something else."""
    try:
        content = json.loads(text or '{}')
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


def _no_such_file(file: Path) -> str:
    there = sorted(p.name for p in file.parent.glob('*') if p.suffix in ('.pth', '.pt', '.safetensors'))
    hint = f'checkpoints in that folder: {", ".join(there)}' if there else 'that folder holds none'
    return f'no such file ({hint})'


def check_checkpoint(path: str | os.PathLike[str], key: str = 'checkpoint') -> Path:
    """Find a missing or cut off checkpoint before data sets and a model are built, which takes minutes.

    It reads the file's directory alone. Whoever loads the file at once has no need of it: :func:`load_file` says the
    same.

    Args:
        path: a local file in PyTorch's or the safetensors format.
        key: the option or config key that named the file, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, or shorter than it says.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f'{key}={str(path)!r}: {_no_such_file(file)}')
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return -1
