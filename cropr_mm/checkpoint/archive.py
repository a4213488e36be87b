"""What a file that PyTorch wrote looks like from outside: its size, and the archive around its pickle.

PyTorch and Python's zipfile read a crafted archive differently. So an archive is refused unless it is laid out as
PyTorch's own writer does it.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import BinaryIO

from .unpickle import Refused


def look_into(stream: BinaryIO) -> tuple[int, dict[str, int] | None]:
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
    expected = (b'PK\5\6', 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), end - start, start, 0)
    if tail[-42:-38] == b'PK\6\7':
        end -= 76  # zip64, as PyTorch writes it
        place = struct.unpack('<4sIQI', tail[-42:-22])
        sizes = struct.unpack('<4sQ2H2I4Q', tail[-98:-42])
        right = place == (b'PK\6\7', 0, end, 1) and sizes[:2] == (b'PK\6\6', 44) and sizes[4:6] == (0, 0)
        right = right and sizes[6:] == (count, count, end - start, start) and fields[:3] == expected[:3]
        right = right and fields[7] == 0
    else:
        right = fields == expected
    if not right:
        raise Refused('an archive with a comment, or whose directory is not where it says')


def _zip64_fields(extra: bytes) -> int:
    found = 0
    while len(extra) >= 4:
        kind, length = struct.unpack('<2H', extra[:4])
        found, extra = found + (kind == 1), extra[4 + length :]
    return found
