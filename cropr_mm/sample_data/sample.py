"""Writes scenes to disk: images, an ADE20K-style label folder and COCO instances of the same images.

::

    OUT/images/{training,validation}/00000.jpg
    OUT/annotations/{training,validation}/00000.png      0 is void, classes count from 1
    OUT/annotations/instances_{training,validation}.json  boxes and masks of what is visible, things from 1
    OUT/sample_data.json                                 what was asked for
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ..utils.checks import check_integer
from ..utils.io import whole_folder
from ..utils.progress import progress_bar
from .classes import THINGS
from .scenes import Scene, draw_scene

__all__ = ['MANIFEST', 'encode_rle', 'write_sample_data', 'write_scenes']

MANIFEST = 'sample_data.json'
_FORMAT = 1


def write_sample_data(
    out: str | Path, train: int = 4000, val: int = 400, seed: int = 0, size: int = 96, progress: bool = True
) -> Path:
    """Write the sample data set, or return at once where it is there already.

    It is drawn into a folder beside ``out`` that takes its name in one step at the end, so ``out`` never
    holds half a data set.

    Args:
        out: folder to write; must not exist, be empty, or hold the same data set.
        train, val: number of images, 1 to 100,000 each.
        seed: at least 0.
        size: side of the images in pixels, 32 to 4096.
        progress: show a bar, on a terminal.

    Returns:
        ``out``.

    Raises:
        ValueError: a number is out of range, or ``out`` holds a sample data set made with other settings.
        FileExistsError: ``out`` is there and is no sample data set.
    """
    asked = dict(format=_FORMAT, train=train, val=val, seed=seed, size=size)
    return write_scenes(out, asked, lambda split: lambda index: draw_scene(seed, index, split, size), THINGS, progress)


def write_scenes(
    out: str | Path,
    asked: dict[str, Any],
    drawer: Callable[[str], Callable[[int], Scene]],
    things: Sequence[str],
    progress: bool = True,
) -> Path:
    """Write scenes of any kind as the sample data is written, or return at once where they are there already.

    Args:
        out, progress: see :func:`write_sample_data`.
        asked: what tells these scenes from others, with ``train``, ``val``, ``seed`` and ``size``.
        drawer: gives the function that draws scene ``index`` of ``'training'`` or ``'validation'``.
        things: names of the countable classes.

    Returns, raises: as :func:`write_sample_data`.
    """
    out = Path(out)
    for key, least, most in (('train', 1, 100_000), ('val', 1, 100_000), ('seed', 0, 2**63), ('size', 32, 4096)):
        check_integer(key, asked[key], least, most)
    if _is_complete(out, asked):
        return out
    try:
        with whole_folder(out) as partial:
            with progress_bar('scenes', asked['train'] + asked['val'], progress) as advance:
                for split, count in (('training', asked['train']), ('validation', asked['val'])):
                    _write_split(partial, split, count, drawer(split), things, advance)
            (partial / MANIFEST).write_text(json.dumps(asked) + '\n')
    except OSError:
        if not _is_complete(out, asked):  # else another process finished the same data set first
            raise
    return out


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a mask (H, W) bool: counts down the columns, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    starts = np.flatnonzero(np.diff(flat, append=~flat[-1]))
    return dict(size=list(mask.shape), counts=np.diff(starts, prepend=0).tolist())


def _is_complete(out: Path, asked: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MANIFEST).read_text())
        found = {key: found[key] for key in asked}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f'{out} exists and is no sample data set (no readable {MANIFEST} in it); name another folder'
        ) from None
    if found != asked:
        differs = ', '.join(f'{key}={found[key]} (asked: {asked[key]})' for key in asked if found[key] != asked[key])
        raise ValueError(f'{out} holds a sample data set with {differs}; delete it or name another folder')
    return True


def _write_split(
    root: Path, split: str, count: int, draw: Callable[[int], Scene], things: Sequence[str], advance: Callable[[], None]
) -> None:
    from PIL import Image

    image_dir, label_dir = root / 'images' / split, root / 'annotations' / split
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = draw(index)
        Image.fromarray(scene.image).save(image_dir / f'{index:05d}.jpg', quality=95, subsampling=0)
        Image.fromarray(scene.labels + np.uint8(1)).save(label_dir / f'{index:05d}.png')
        height, width = scene.labels.shape
        images.append(dict(id=index + 1, file_name=f'{index:05d}.jpg', height=height, width=width))
        for annotation in _instances(scene):
            annotations.append(dict(annotation, id=len(annotations) + 1, image_id=index + 1))
        advance()
    categories = [dict(id=number, name=name) for number, name in enumerate(things, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _instances(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene, without ids: box (x, y, width, height) and run lengths of the visible part."""
    found: list[dict[str, Any]] = []
    for mask, category in zip(scene.masks, scene.categories):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        found.append(
            dict(
                category_id=category + 1,
                iscrowd=0,
                area=int(mask.sum()),
                bbox=[int(value) for value in box],
                segmentation=encode_rle(mask),
            )
        )
    return found
