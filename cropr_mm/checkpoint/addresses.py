"""Checkpoints by address: what mmengine reads from a disk, the internet or a bucket, read by this package.

mmengine reads files by ``torch.load`` with whatever protection the installed PyTorch has by default: none before 2.6
and none for downloads, and from 2.6 on one that refuses what mmengine's own runner saves. :func:`protect_mmengine` puts
the loaders of this module in the place of mmengine's. Other users of ``torch.load`` notice nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mm

from .read import CheckpointError, load_file


def load_address(path: str) -> Any:
    """Read a local file, or an address that mmengine knows, to the CPU; errors as of :func:`load_file`."""
    return CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')


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
        try:
            torch.hub.download_url_to_file(address, str(target), progress=progress)
        except OSError as error:  # of the network, too
            reason = getattr(error, 'reason', error)
            raise URLError(f'{address} cannot be downloaded: {reason}') from error


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
