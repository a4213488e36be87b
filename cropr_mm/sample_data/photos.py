"""Photographs of CIFAR-10: small images with one object each, read into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ['PHOTO_SIZE', 'PHOTO_THINGS', 'read_photos']

PHOTO_THINGS = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
"""CIFAR-10's classes, in its order (Krizhevsky, Learning multiple layers of features from tiny images, 2009)."""

PHOTO_SIZE = 32


def read_photos(root: str | Path, split: str, first: float = 0.0, last: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of CIFAR-10, class by class, in the order of the file names.

    Args:
        root: folder with ``{split}/{class}/*.jpg`` or ``.png``, as ``tools/dataset_converters/cifar10.py`` writes it.
        split: ``'train'`` or ``'test'``.
        first, last: the part of each class to read, as shares of its images: 0 to 0.8 and 0.8 to 1 have none in common.

    Returns:
        Images (N, 32, 32, 3) uint8 RGB and classes (N,) int64, indices into :data:`PHOTO_THINGS`.

    Raises:
        FileNotFoundError: a class has no folder or no images.
        ValueError: an image of another size.
    """
    from PIL import Image

    images, classes = [], []
    for number, name in enumerate(PHOTO_THINGS):
        folder = Path(root) / split / name
        files = sorted(file for file in folder.glob('*') if file.suffix in ('.jpg', '.png'))
        if not files:
            raise FileNotFoundError(
                f'{folder}: no .jpg or .png; CIFAR-10 as tools/dataset_converters/cifar10.py writes it is expected'
            )
        for file in files[round(first * len(files)) : round(last * len(files))]:
            image = np.asarray(Image.open(file).convert('RGB'))
            if image.shape != (PHOTO_SIZE, PHOTO_SIZE, 3):
                raise ValueError(
                    f'{file}: {image.shape[1]} × {image.shape[0]} pixels; {PHOTO_SIZE} × {PHOTO_SIZE} are expected'
                )
            images.append(image)
            classes.append(number)
    return np.stack(images), np.array(classes, np.int64)
