"""A few made-up images in the folders of CIFAR-10 and CamVid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cropr_mm.sample_data.photos import PHOTO_THINGS

PER_CLASS = 5
CAMVID_SIZE = (120, 130)


def write_cifar10(root: Path, per_class: int = PER_CLASS) -> Path:
    """Images of one value each: 20 × class + number in training, one more and 5 + number in testing."""
    for split, offset in (('train', 0), ('test', 6)):
        for number, name in enumerate(PHOTO_THINGS):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                value = 20 * number + offset + i
                Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(folder / f'{i:04d}.png')
    return root


def write_camvid(root: Path) -> Path:
    """One image per split: stripes of all classes, of which four are stuff here, and of unlabelled pixels."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        labels = np.empty(CAMVID_SIZE, np.uint8)
        for row in range(CAMVID_SIZE[0]):
            labels[row] = (0, 5, 1, 8, 3, 255)[row // 20]
        image = rng.integers(0, 256, (*CAMVID_SIZE, 3), np.uint8)
        for kind, content, suffix in (('images', image, 'jpg'), ('labels', labels, 'png')):
            (root / kind / split).mkdir(parents=True)
            Image.fromarray(content).save(root / kind / split / f'0001.{suffix}')
    return root
