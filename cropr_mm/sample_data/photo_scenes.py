"""Scenes of real pixels: photographs of single objects pasted on pieces of road scenes.

As with the drawn scenes, the objects gain from depth and the stuff does not: what a road, a wall or the sky is, one
patch shows; whether a photograph shows a cat or a dog takes all of it, and its own background belongs to it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .photos import PHOTO_THINGS, read_photos
from .sample import write_scenes
from .scenes import STREAMS, VISIBLE, Scene
from .textures import smooth_noise

__all__ = ['PHOTO_CLASSES', 'PHOTO_PALETTE', 'PHOTO_STUFF', 'PhotoScenes', 'Places', 'write_photo_scenes']

PHOTO_STUFF = ('sky', 'building', 'road', 'tree')
"""CamVid's large classes; what else is in a background is void."""

PHOTO_CLASSES = PHOTO_STUFF + PHOTO_THINGS

PHOTO_PALETTE = (
    *((128, 128, 128), (128, 64, 0), (128, 64, 128), (64, 128, 0)),
    *((70, 160, 255), (255, 40, 40), (255, 220, 60), (255, 120, 200), (190, 120, 60)),
    *((120, 60, 255), (60, 220, 60), (230, 150, 90), (30, 60, 200), (255, 140, 0)),
)
"""One RGB colour per class, to draw predictions with."""

_CAMVID = {0: 0, 1: 1, 3: 2, 5: 3}  # label in CamVid → stuff class
_VOID = 255
_SPLITS = {'training': 'train', 'validation': 'test'}  # the split of CIFAR-10 and of CamVid
SIDE = (20, 31)
"""Side of a pasted photograph in pixels, about that at which it was taken."""
PIECE = (1.0, 1.8)
"""Side of the piece of a road scene that becomes a background, as a multiple of the scene's."""
OUTLINE = ((2.5, 8.0), (0.5, 2.5), (0.0, 2 * math.pi))
"""From where to where ``power``, ``edge`` and ``turn`` of an :func:`outline` are drawn."""
PASTED = 0.8
"""The photographs of CIFAR-10's training split from here on are pasted; those before are there to pre-train on."""


class Places:
    """Draws backgrounds: pieces of road scenes in which the large classes fill most of the pixels, mirrored or not.

    Args:
        camvid: folder with ``images/{train,val,test}`` and ``labels/{train,val,test}``, as
            ``tools/dataset_converters/camvid.py`` writes it.
        split: ``'train'``, ``'val'`` or ``'test'``, read once.
        size: side of the pieces in pixels.

    Raises:
        FileNotFoundError: images are missing.
        ValueError: ``size`` is too large for the road scenes.
    """

    def __init__(self, camvid: str | Path, split: str, size: int = 64) -> None:
        self.size = size
        self.images = _read_road_scenes(Path(camvid), split)
        shortest = min(min(labels.shape) for _, labels in self.images)
        if int(PIECE[1] * size) > shortest:
            raise ValueError(
                f'size={size}; at most {int(shortest / PIECE[1])} is expected: backgrounds are pieces of up to '
                f'{PIECE[1]} times that side, and an image in {camvid} has {shortest} pixels'
            )

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A piece (S, S, 3) float32 RGB and its stuff classes (S, S) uint8, 255 elsewhere."""
        from PIL import Image

        best: tuple[float, np.ndarray, np.ndarray] | None = None
        for _ in range(20):
            image, labels = self.images[int(rng.integers(len(self.images)))]
            side = int(rng.uniform(*PIECE) * self.size)
            top, left = (int(rng.integers(length - side + 1)) for length in labels.shape)
            piece = (slice(top, top + side), slice(left, left + side))
            share = float((labels[piece] != _VOID).mean())
            if best is None or share > best[0]:
                best = share, image[piece], labels[piece]
            if share >= 0.95:
                break
        assert best is not None
        pixels = Image.fromarray(best[1]).resize((self.size,) * 2, Image.Resampling.BILINEAR)
        classes = Image.fromarray(best[2]).resize((self.size,) * 2, Image.Resampling.NEAREST)
        step = -1 if rng.random() < 0.5 else 1
        return np.asarray(pixels, np.float32)[:, ::step].copy(), np.asarray(classes)[:, ::step].copy()


def outline(x: Any, y: Any, side: float, power: Any, edge: Any, turn: Any) -> Any:
    """How much of each pixel a photograph covers, 0 to 1: between disc and square, slightly triangular.

    Args:
        x, y: arrays of the pixels' places, -1 to 1 within the photograph.
        side: of the photograph in pixels.
        power, edge, turn: 2 gives a disc and more comes closer to a square; width of the soft edge in pixels; angle.
            Each within :data:`OUTLINE`; numbers, or arrays that fit.
    """
    radius = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
    radius = radius * (1 + 0.06 * np.sin(3 * np.arctan2(y, x) + turn))
    return np.clip((0.97 - radius) * side / 2 / edge + 0.5, 0, 1)


class PhotoScenes:
    """Draws scenes of one split; the photographs and the road scenes are read once.

    Args:
        cifar10: folder as :func:`~cropr_mm.sample_data.photos.read_photos` reads it.
        camvid: folder as :class:`Places` reads it.
        split: ``'training'``: the last fifth of CIFAR-10's training split on CamVid's training images.
            ``'validation'``: its test split on CamVid's test images.
        seed: another seed gives other scenes.
        size: side of the scenes in pixels.

    Raises:
        FileNotFoundError: images are missing.
        ValueError: ``size`` is too large for the road scenes.
    """

    def __init__(self, cifar10: str | Path, camvid: str | Path, split: str, seed: int = 0, size: int = 64) -> None:
        source, self.stream = _SPLITS[split], STREAMS[split]
        self.seed, self.size = seed, size
        self.photos, self.classes = read_photos(cifar10, source, PASTED if source == 'train' else 0.0)
        self.places = Places(camvid, source, size)

    def __call__(self, index: int) -> Scene:
        """Draw scene ``index``: the same arguments give the same scene, to the byte."""
        rng = np.random.default_rng([self.seed, self.stream, index])
        canvas, labels = self.places(rng)
        masks: list[np.ndarray] = []
        wholes: list[int] = []
        categories: list[int] = []
        for _ in range(int(rng.integers(1, 1 + max(2, self.size**2 // 2000)))):
            which = int(rng.integers(len(self.photos)))
            side = round(rng.uniform(*SIDE))
            for _ in range(10):  # look for a place that leaves most of the earlier photographs visible
                top, left = (int(rng.integers(-side // 8, self.size - side + side // 8 + 1)) for _ in range(2))
                cover = self._cover(rng, side, top, left)
                mask = cover >= 0.5
                if all((m & ~mask).sum() >= VISIBLE * whole for m, whole in zip(masks, wholes)):
                    break
            else:
                continue
            masks = [m & ~mask for m in masks] + [mask]
            wholes.append(int(mask.sum()))
            categories.append(int(self.classes[which]))
            self._paste(rng, canvas, self.photos[which], cover, side, top, left)
            labels[mask] = len(PHOTO_STUFF) + categories[-1]
        image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        return Scene(image, labels, np.array(masks, bool).reshape(-1, self.size, self.size), tuple(categories))

    def _cover(self, rng: np.random.Generator, side: int, top: int, left: int) -> np.ndarray:
        """How much of each pixel a photograph covers, (S, S) float32."""
        looks = tuple(rng.uniform(*span) for span in OUTLINE)
        y, x = np.mgrid[: self.size, : self.size].astype(np.float32)
        return outline((2 * (x - left + 0.5) / side - 1), (2 * (y - top + 0.5) / side - 1), side, *looks)

    def _paste(
        self,
        rng: np.random.Generator,
        canvas: np.ndarray,
        photo: np.ndarray,
        cover: np.ndarray,
        side: int,
        top: int,
        left: int,
    ) -> None:
        """Blend a photograph in, mirrored or not, its light drawn towards that of the place."""
        from PIL import Image

        step = -1 if rng.random() < 0.5 else 1
        resized = Image.fromarray(np.ascontiguousarray(photo[:, ::step])).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.zeros_like(canvas)
        rows = slice(max(top, 0), min(top + side, self.size))
        columns = slice(max(left, 0), min(left + side, self.size))
        pixels[rows, columns] = np.asarray(resized, np.float32)[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        inside = cover > 0
        light = rng.uniform(0, 0.4) * (canvas[inside].mean() - pixels[inside].mean())
        shade = 1 + 0.1 * smooth_noise(rng, self.size, (48, 48))
        pixels = (pixels + light) * shade[..., None]
        canvas += cover[..., None] * (pixels - canvas)


def _read_road_scenes(root: Path, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (H, W, 3) uint8 RGB of a split of CamVid and their stuff classes (H, W) uint8, 255 elsewhere."""
    from PIL import Image

    table = np.full(256, _VOID, np.uint8)
    table[list(_CAMVID)] = list(_CAMVID.values())
    pairs = []
    for file in sorted((root / 'images' / split).glob('*')):
        labels = table[np.asarray(Image.open(root / 'labels' / split / f'{file.stem}.png'))]
        pairs.append((np.asarray(Image.open(file).convert('RGB')), labels))
    if not pairs:
        raise FileNotFoundError(
            f'{root / "images" / split}: no images; CamVid as tools/dataset_converters/camvid.py writes it is expected'
        )
    return pairs


def write_photo_scenes(
    out: str | Path,
    cifar10: str | Path,
    camvid: str | Path,
    train: int = 4000,
    val: int = 400,
    seed: int = 0,
    size: int = 64,
    progress: bool = True,
) -> Path:
    """Write scenes of real pixels, laid out as the sample data, or return at once where they are there already.

    Args:
        cifar10, camvid: see :class:`PhotoScenes`.
        out, train, val, seed, size, progress: see :func:`~cropr_mm.sample_data.write_sample_data`.

    Returns:
        ``out``.

    Raises:
        ValueError, FileExistsError: as of :func:`~cropr_mm.sample_data.write_sample_data`.
        ValueError, FileNotFoundError: as of :class:`PhotoScenes`.
    """
    asked = dict(kind='photo scenes', train=train, val=val, seed=seed, size=size)
    return write_scenes(
        out, asked, lambda split: PhotoScenes(cifar10, camvid, split, seed, size), PHOTO_THINGS, progress
    )
