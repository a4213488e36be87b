"""Writing files and folders whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_place(path: str | Path, folder: bool = False) -> None:
    """See that a file, or a folder, can be written at a path, before the work whose result it will hold.

    Raises:
        ValueError: it cannot; the message names the path and why.
    """
    path = Path(path).expanduser()
    if path.exists() and path.is_dir() != folder:
        found, expected = ('file', 'folder') if folder else ('folder', 'file')
        raise ValueError(f'{str(path)!r} is a {found}; a {expected} is expected')
    there = path if folder and path.exists() else path.absolute().parent
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f'{str(path)!r}: {there} is a file; a folder is expected')
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f'{str(path)!r}: nothing can be written to {there} ({error.strerror})') from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def _names(path: Path) -> Iterator[None]:
    """Let an error of a full or read-only disk name the file that could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise OSError(error.errno, f'cannot be written: {error.strerror}', str(path)) from error
        raise


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes that one's place when the block ends without an error.

    So a reader never sees half a file, and a run cut short leaves the old one. The folder is made where it is
    missing. The suffix is kept, since some writers read the format from it. Each call has a path of its own, so that
    of several processes which write the same file the last one's stands, whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.{uuid.uuid4().hex[:12]}.partial{path.suffix}')
    try:
        with _names(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """An empty folder beside ``out`` to fill; it takes that name when the block ends without an error.

    Args:
        out: must not exist, or be an empty folder.

    Raises:
        FileExistsError: ``out`` is there.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f'{out} exists; delete it or name another folder')
    partial = out.with_name(f'.{out.name}.{uuid.uuid4().hex[:12]}.partial')
    with _names(out):
        partial.mkdir(parents=True)
    try:
        with _names(out):
            yield partial
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + '\n')
