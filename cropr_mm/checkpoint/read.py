"""The one door for checkpoint files: .pth, .safetensors and addresses, for this package and for mmengine.

mmengine reads files by ``torch.load`` with whatever protection the installed PyTorch has by default: none before 2.6
and none for downloads, and from 2.6 on one that refuses what mmengine's own runner saves. :func:`protect_mmengine` puts
the readers of this module in the place of mmengine's. Other users of ``torch.load`` notice nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mm

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
        FileNotFoundError: no such file.
        CheckpointError: the file cannot be read, or is refused.
    """
    name = name or str(source)
    if isinstance(source, str) and not os.path.isfile(source):
        raise FileNotFoundError(f'{name} can not be found: there is no such file.')
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
            total, sizes = _look_into(stream)
    else:
        total, sizes = _look_into(source)
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


def _look_into(stream: BinaryIO) -> tuple[int, dict[str, int] | None]:
    """Bytes of a file, and of each storage in it if it is a zip archive."""
    head = stream.read(4)
    sizes = _record_sizes(stream) if head == b'PK\3\4' else None
    if sizes is None and head[:1] != b'\x80':
        raise ValueError('neither a zip archive nor a pickle, as PyTorch writes them')
    total = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return total, sizes


def _record_sizes(stream: BinaryIO) -> dict[str, int]:
    """Bytes of each storage in a zip archive, which PyTorch itself does not compare with what it reads.

    Raises:
        Refused: an archive that PyTorch's writer does not make.
    """
    with zipfile.ZipFile(stream) as archive:
        entries, start = archive.infolist(), archive.start_dir
    _check_directory(stream, start, len(entries))
    names = [entry.orig_filename for entry in entries]
    # PyTorch takes upper case for lower case, and ends a name at its first zero.
    plain = all(entry.filename == entry.orig_filename and '\0' not in entry.orig_filename for entry in entries)
    if (
        len({name.lower() for name in names}) < len(names)
        or len({name.split('/')[0] for name in names}) > 1
        or not plain
    ):
        raise Refused('an archive with several entries of one name, or several roots')
    if any(entry.external_attr & 0x10 and entry.file_size for entry in entries):
        raise Refused('a folder with contents')  # which PyTorch does not read
    if sum(entry.file_size for entry in entries) > start or any(_zip64_fields(entry.extra) > 1 for entry in entries):
        raise Refused('entries that share their bytes')
    if any(entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size for entry in entries):
        raise Refused('compressed or encrypted entries')
    inside = {name.partition('/')[2]: entry.file_size for name, entry in zip(names, entries)}
    if 'constants.pkl' in inside:
        raise Refused('a program (TorchScript)')
    return {name[len('data/') :]: size for name, size in inside.items() if name.startswith('data/')}


def _check_directory(stream: BinaryIO, start: int, count: int) -> None:
    """See that an archive has one directory and nothing around it.

    Python looks for it directly before the archive's end, PyTorch where that end says: a file could show them two.
    """
    end = stream.seek(0, io.SEEK_END) - 22
    stream.seek(max(end - 76, 0))
    tail = stream.read(98)
    fields = struct.unpack('<4s4H2IH', tail[-22:])
    wanted = (b'PK\5\6', 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), end - start, start, 0)
    if tail[-42:-38] == b'PK\6\7':
        end -= 76  # zip64, as PyTorch writes it
        place = struct.unpack('<4sIQI', tail[-42:-22])
        sizes = struct.unpack('<4sQ2H2I4Q', tail[-98:-42])
        right = place == (b'PK\6\7', 0, end, 1) and sizes[:2] == (b'PK\6\6', 44) and sizes[4:6] == (0, 0)
        right = right and sizes[6:] == (count, count, end - start, start) and fields[:3] == wanted[:3]
        right = right and fields[7] == 0
    else:
        right = fields == wanted
    if not right:
        raise Refused('an archive with a comment, or whose directory is not where it says')


def _zip64_fields(extra: bytes) -> int:
    found = 0
    while len(extra) >= 4:
        kind, length = struct.unpack('<2H', extra[:4])
        found, extra = found + (kind == 1), extra[4 + length :]
    return found


def _load_safetensors(path: str, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    with safe_open(path, framework='pt') as file:
        header, names = file.metadata() or {}, list(file.keys())
        # By PyTorch, for which 'cuda' is the device of this process and not always the first.
        state = OrderedDict((name, file.get_tensor(name).to(device)) for name in names)
    grids = _json(header.get(GRIDS))
    state._metadata = {place: {'grid': grid} for place, grid in grids.items()}  # type: ignore[attr-defined]
    return dict(state_dict=state, meta=_json(header.get('meta')))


def _json(text: str | None) -> dict[str, Any]:
    """What this package writes; other projects may use the name for something else."""
    try:
        content = json.loads(text or '{}')
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return -1


# --- addresses --------------------------------------------------------------------------------------------------------


def download(address: str) -> str:
    """Path of a file from the internet, kept in torch.hub's folder.

    The name begins with a hash of the address: many published files are called ``model.safetensors``.
    """
    name = f'{hashlib.sha256(address.encode()).hexdigest()[:12]}_{Path(urlparse(address).path).name}'
    target = Path(torch.hub.get_dir()) / 'checkpoints' / name
    first = int(os.environ.get('LOCAL_RANK', get_rank())) == 0
    try:
        if first:  # of the processes on its machine, which find the file there
            _fetch(address, target, progress=True)
    finally:
        barrier()  # also where that failed: the others would wait for ever
    if not first:
        _fetch(address, target, progress=False)
    return str(target)


def _fetch(address: str, target: Path, progress: bool) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(target), progress=progress)


# mmengine logs what stands after load_from_ in the name of a loader.


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """A file on this machine; see :func:`load_file`."""
    path = url2pathname(urlparse(filename).path) if filename.startswith('file://') else os.path.expanduser(filename)
    return load_file(path, map_location, filename)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """``https://host/file.pth``."""
    return load_file(download(filename), map_location, filename)


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """``s3://bucket/file.pth``, by mmengine's file backend."""
    content = get_file_backend(filename, backend_args=dict(backend='petrel')).get(filename)
    return load_file(io.BytesIO(content), map_location, filename)


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """``torchvision://resnet50``."""
    return load_from_http(_listed(filename, mm.get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """``openmmlab://contrib/resnet50_gn``."""
    renamed, scheme = mm.get_deprecated_model_names(), filename.partition('://')[0]
    name = filename.partition('://')[2]
    address = _listed(f'{scheme}://{renamed.get(name, name)}', mm.get_external_models())
    if address.startswith(('http://', 'https://')):
        return load_from_http(address, map_location)
    return load_file(os.path.join(mm._get_mmengine_home(), address), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """``mmcls://vit-base-p16``."""
    checkpoint = load_from_http(_listed(filename, mm.get_mmcls_models()), map_location)
    return mm._process_mmcls_checkpoint(checkpoint)


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """``pavi://``, which only SenseTime's own client reads."""
    raise CheckpointError(f'{filename}: is not read, as nothing protects what that client loads; give a path')


def _listed(filename: str, addresses: dict[str, str]) -> str:
    name = filename.partition('://')[2]
    if name not in addresses:
        raise CheckpointError(f'{filename}: mmengine lists no such model')
    return addresses[name]


_LOADERS = {
    '': load_from_local,
    'http://': load_from_http,
    'https://': load_from_http,
    r'(\S+\:)?s3://': load_from_ceph,
    r'(\S+\:)?petrel://': load_from_ceph,
    'modelzoo://': load_from_torchvision,
    'torchvision://': load_from_torchvision,
    'open-mmlab://': load_from_openmmlab,
    'openmmlab://': load_from_openmmlab,
    'mmcls://': load_from_mmcls,
    'pavi://': load_from_pavi,
}
"""Prefixes (regular expressions) by which mmengine chooses a reader, all that it has itself."""


def protect_mmengine() -> None:
    """Read by this module wherever mmengine takes a checkpoint: ``load_from``, ``--resume``, ``init_cfg``, inference.

    Called when ``cropr_mm`` is imported; calling it again changes nothing. Schemes that others registered stay.
    """
    for prefix, loader in _LOADERS.items():
        CheckpointLoader.register_scheme(prefix, loader, force=True)


def load_address(path: str) -> Any:
    """Read a local file, or an address that mmengine knows, to the CPU; errors as of :func:`load_file`."""
    return CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
