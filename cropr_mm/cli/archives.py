"""What the data set converters share: members of archives, none of which is extracted, and images."""

from __future__ import annotations

import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from re import Pattern

from PIL import Image

BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error),
    *(EOFError, RuntimeError, NotImplementedError, OSError),
)
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def unreadable(source: Path, error: Exception, kinds: str) -> ValueError:
    """The error to raise for one of ``BROKEN_ARCHIVE``; ``kinds`` are those of archives that are read."""
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(':')
    return ValueError(f'{source} cannot be read: {reason}; a whole {kinds} archive, or a folder, is expected')


def read_members(source: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Path, with slashes, and content of each member whose whole path matches, in the order of the source.

    Args:
        source: a zip or tar archive, or a folder; a folder is read in the order of its names.
        wanted: a compiled pattern.

    Raises:
        ValueError: ``source`` is no archive or a broken one.
    """
    if source.is_dir():
        for folder, folders, names in os.walk(source):
            folders.sort()
            for file in (Path(folder) / name for name in sorted(names)):
                path = file.relative_to(source).as_posix()
                if wanted.fullmatch(path):
                    yield path, file.read_bytes()
        return
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for path in filter(wanted.fullmatch, archive.namelist()):
                    yield path, archive.read(path)
        else:
            with tarfile.open(source) as archive:
                for member in archive:
                    content = archive.extractfile(member) if wanted.fullmatch(member.name) else None
                    if content is not None:
                        yield member.name, content.read()
    except BROKEN_ARCHIVE as error:
        raise unreadable(source, error, 'zip or tar') from None


def open_png(path: str, data: bytes) -> Image.Image:
    """Decode a PNG; ``path`` names it where it is none or a broken one (ValueError)."""
    try:
        image = Image.open(io.BytesIO(data), formats=['PNG'])
        image.load()
    except _BROKEN_IMAGE as error:
        raise ValueError(f'{path} cannot be read: {error}; a whole PNG is expected') from None
    return image


def print_counts(source: str, out: str, counts: dict[str, int], published: dict[str, int]) -> None:
    """Say how many images of each split were written, and on stderr if that is not the whole data set."""
    written, whole = (', '.join(f'{n} {split}' for split, n in c.items()) for c in (counts, published))
    print(f'{out}: {written} images')
    if counts != published:
        print(f'{source} is not the whole data set, which has {whole} images', file=sys.stderr)
