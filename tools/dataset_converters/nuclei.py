"""Convert stage1_train of the Data Science Bowl 2018 to what configs/nuclei reads.

python tools/dataset_converters/nuclei.py stage1_train.zip data/nuclei

::

    OUT/images/{train,val}/NAME.jpg     JPEG, quality 95; NAME is the start of the image's id
    OUT/instances_{train,val}.json      COCO, one class; boxes and run lengths of the masks
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import numpy as np

from cropr_mm.cli.archives import BROKEN_ARCHIVE, open_png, unreadable
from cropr_mm.cli.arguments import plain_errors
from cropr_mm.sample_data.sample import encode_rle
from cropr_mm.utils.io import whole_folder
from cropr_mm.utils.progress import track

SPLITS = ('train', 'val')
# What is read, with or without folders in front: ID/images/ID.png and ID/masks/ANY.png.
_MEMBER = re.compile(r'(?:.*/)?([^/]+)/(images|masks)/([^/.][^/]*)\.png')
_Read = Callable[[str], bytes]
_Paths = Dict[str, Dict[str, str]]  # id → file name → path


class Counts(NamedTuple):
    """What was written, and what was left out."""

    images: dict[str, int]
    nuclei: int
    without_masks: int
    empty_masks: int


def split_of(image_id: str) -> str:
    """The split of an image: about one in five is for validation, by the MD5 of its id, so never another one."""
    return 'val' if int(hashlib.md5(image_id.encode()).hexdigest(), 16) % 5 == 0 else 'train'


def convert(source: str | Path, out: str | Path, progress: bool = True) -> Counts:
    """Write the data set into a folder beside ``out`` that takes its name in one step at the end.

    Images without masks are left out, and so are masks without a pixel.

    Args:
        source: a zip archive of stage1_train, or such a folder; other folders may stand in front.
        out: folder to write; must not exist, or be empty.
        progress: show a bar, on a terminal.

    Raises:
        FileNotFoundError: no ``source``.
        FileExistsError: ``out`` is there.
        ValueError: images or masks are missing, doubled, broken or of another size; names the file.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'{source} does not exist; stage1_train.zip or such a folder is expected')
    with whole_folder(out) as partial, _opened(source) as (paths, read):
        images, masks = _sorted_out(source, paths)
        return _write(partial, images, masks, read, progress)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[list[str], _Read]]:
    """All paths of the source, with slashes, and what reads one. Nothing is extracted."""
    if source.is_dir():
        files = (Path(folder) / name for folder, _, names in os.walk(source) for name in names)
        yield [file.relative_to(source).as_posix() for file in files], lambda path: (source / path).read_bytes()
        return

    def read(path: str) -> bytes:
        try:
            return archive.read(path)
        except BROKEN_ARCHIVE as error:
            raise unreadable(source, error, 'zip') from None

    try:
        archive = zipfile.ZipFile(source)
    except BROKEN_ARCHIVE as error:
        raise unreadable(source, error, 'zip') from None
    with archive:
        yield archive.namelist(), read


def _sorted_out(source: Path, paths: list[str]) -> tuple[dict[str, str], _Paths]:
    """Path of each image, and paths of the masks of each, by id."""
    found: dict[str, _Paths] = dict(images={}, masks={})
    for path in sorted(paths):
        match = _MEMBER.fullmatch(path)
        if match is None or path.startswith('__MACOSX/'):
            continue
        image_id, kind, name = match.groups()
        if kind == 'images' and name != image_id:
            raise ValueError(f'{path} in {source}: the image of folder {image_id} is expected to be {image_id}.png')
        same = found[kind].setdefault(image_id, {})
        if name in same:
            raise ValueError(f'{source} holds {image_id}/{kind}/{name}.png twice: {same[name]} and {path}')
        same[name] = path
    for kind, example in (('images', 'ID/images/ID.png'), ('masks', 'ID/masks/NAME.png')):
        if not found[kind]:
            raise ValueError(f'{source} has no {kind}; {example} is expected, as in stage1_train')
    for image_id in found['masks']:
        if image_id not in found['images']:
            raise ValueError(f'{source} has masks for {image_id}, but no {image_id}/images/{image_id}.png')
    return {image_id: path for image_id, same in found['images'].items() for path in same.values()}, found['masks']


def _write(root: Path, images: dict[str, str], masks: _Paths, read: _Read, progress: bool) -> Counts:
    data: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split in SPLITS:
        (root / 'images' / split).mkdir(parents=True)
        data[split] = dict(images=[], annotations=[], categories=[dict(id=1, name='nucleus')])
    empty = 0
    for image_id in track(sorted(images), 'images', show=progress):
        if image_id in masks:
            split = split_of(image_id)
            content, file = data[split], root / 'images' / split / f'{image_id[:16]}.jpg'
            if file.exists():
                raise ValueError(f'{images[image_id]}: another id begins with {image_id[:16]}, too; one is expected')
            with open_png(images[image_id], read(images[image_id])) as image:
                image.convert('RGB').save(file, quality=95, subsampling=0)
                width, height = image.size
            number = len(content['images']) + 1
            content['images'].append(dict(id=number, file_name=file.name, width=width, height=height))
            for path in masks[image_id].values():
                annotation = _annotation(_mask(path, read, (width, height)))
                if annotation is None:
                    empty += 1
                else:
                    ids = dict(id=len(content['annotations']) + 1, image_id=number, category_id=1)
                    content['annotations'].append(dict(ids, **annotation))
    for split, content in data.items():
        (root / f'instances_{split}.json').write_text(json.dumps(content))
    counts = {split: len(content['images']) for split, content in data.items()}
    nuclei = sum(len(content['annotations']) for content in data.values())
    return Counts(counts, nuclei, len(images) - len(masks), empty)


def _mask(path: str, read: _Read, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool, from white on black."""
    with open_png(path, read(path)) as image:
        if image.size != size:
            found, expected = ('{} x {}'.format(*pair) for pair in (image.size, size))
            raise ValueError(f'{path} is {found}, its image {expected}; the same size is expected')
        return np.asarray(image.convert('L')) > 127


def _annotation(mask: np.ndarray) -> dict[str, Any] | None:
    """Box (x, y, width, height), area and run lengths; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return dict(iscrowd=0, area=int(mask.sum()), bbox=[int(side) for side in box], segmentation=encode_rle(mask))


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='stage1_train.zip, or the folder that was unpacked from it')
    parser.add_argument('out', help='folder to write, usually data/nuclei')
    args = parser.parse_args()
    with plain_errors((ValueError, OSError)):
        counts = convert(args.source, args.out)
    images = ' and '.join(f'{count} {split}' for split, count in counts.images.items())
    print(f'{args.out}: {images} images with {counts.nuclei} nuclei')
    if counts.without_masks or counts.empty_masks:
        print(f'left out: {counts.without_masks} images without masks, {counts.empty_masks} empty masks')


if __name__ == '__main__':
    main()
