"""Draws the scenes of the sample data: textured stuff, and objects whose class takes depth to tell.

Every image is a pure function of (seed, stream, index). An object's colour narrows its class down to a pair,
which one patch shows; its freely rotated shape decides between the two, which takes all of its patches. So
tokens on objects gain from more blocks, tokens on stuff do not, and it matters which ones a pruned ViT keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .classes import COLOURS, STUFF, THINGS
from .textures import shape_coverage, smooth_noise, stuff_texture

__all__ = ['STREAMS', 'Scene', 'draw_crop', 'draw_scene']

STREAMS = {'training': 0, 'validation': 1, 'crops': 2}
"""Each stream draws from random numbers of its own, so no two of them share an image."""

SIDE = (14.0, 22.0)
"""Square root of an object's area, in pixels of a scene 96 wide."""
VISIBLE = 0.6
"""Least share of an object that the ones drawn over it leave."""
CROP_SIZE = 32


@dataclass(frozen=True)
class Scene:
    """One labelled image.

    Attributes:
        image: (S, S, 3) uint8, RGB.
        labels: (S, S) uint8, index into ``CLASSES`` at every pixel.
        masks: (N, S, S) bool, the visible part of each object.
        categories: N indices into ``THINGS``.
    """

    image: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    categories: tuple[int, ...]


def draw_scene(seed: int, index: int, stream: str = 'training', size: int = 96) -> Scene:
    """Draw image ``index`` of a stream: two or three stuff regions, 1 to 4 objects over them, clutter and noise.

    Args:
        seed, index: at least 0. The same pair gives the same scene, to the byte.
        stream: key of ``STREAMS``.
        size: side of the image in pixels, at least 32; everything in it grows along.
    """
    rng = _generator(seed, index, stream)
    if size < CROP_SIZE:
        raise ValueError(f'size={size} is too small to draw objects in; at least {CROP_SIZE} is needed')
    scale = size / 96
    canvas, labels = _regions(rng, size, scale, int(rng.integers(2, 4)))
    _clutter(rng, canvas, scale, int(rng.integers(4, 10)))
    masks: list[np.ndarray] = []
    wholes: list[int] = []
    categories: list[int] = []
    for _ in range(int(rng.integers(1, 5))):
        category = int(rng.integers(len(THINGS)))
        side = rng.uniform(*SIDE) * scale
        for _ in range(10):  # look for a place that leaves enough of the earlier objects visible
            coverage = _place(rng, category, rng.uniform(0.4 * side, size - 0.4 * side, 2), side, size)
            mask = coverage >= 0.5
            if mask.sum() >= 0.7 * side**2 and all(
                (m & ~mask).sum() >= VISIBLE * whole for m, whole in zip(masks, wholes)
            ):
                break
        else:
            continue
        masks = [m & ~mask for m in masks] + [mask]
        wholes.append(int(mask.sum()))
        categories.append(category)
        _paint(rng, canvas, coverage, category, scale)
        labels[mask] = len(STUFF) + category
    return Scene(_finish(rng, canvas, scale), labels, np.array(masks, bool).reshape(-1, size, size), tuple(categories))


def draw_crop(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw a crop to pre-train on: stuff and one whole object somewhere in it, as large as in a scene 96 wide.

    Returns:
        Image (32, 32, 3) uint8, labels (32, 32) uint8 and the object's class, an index into ``THINGS``.
    """
    rng = _generator(seed, index, 'crops')
    canvas, labels = _regions(rng, CROP_SIZE, 1.0, int(rng.integers(1, 3)))
    _clutter(rng, canvas, 1.0, int(rng.integers(0, 3)))
    category = int(rng.integers(len(THINGS)))
    side = rng.uniform(*SIDE)
    slack = max(0.0, (CROP_SIZE - 1.3 * side) / 2)
    centre = CROP_SIZE / 2 + rng.uniform(-slack, slack, 2)
    coverage = _place(rng, category, centre, side, CROP_SIZE)
    _paint(rng, canvas, coverage, category, 1.0)
    labels[coverage >= 0.5] = len(STUFF) + category
    return _finish(rng, canvas, 1.0), labels, category


def _generator(seed: int, index: int, stream: str) -> np.random.Generator:
    if stream not in STREAMS:
        raise ValueError(f'stream={stream!r} is unknown; valid are {sorted(STREAMS)}')
    if seed < 0 or index < 0:
        raise ValueError(f'seed={seed} and index={index} must be at least 0')
    return np.random.default_rng([seed, STREAMS[stream], index])


def _regions(rng: np.random.Generator, size: int, scale: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the image among ``count`` stuff classes: nearest of as many points, with wavy borders."""
    kinds = rng.permutation(len(STUFF))[:count]
    points = rng.uniform(0.1, 0.9, (count, 2)) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    y = y + 6 * scale * smooth_noise(rng, size, (16 * scale, 16 * scale))
    x = x + 6 * scale * smooth_noise(rng, size, (16 * scale, 16 * scale))
    nearest = np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
    canvas = np.empty((size, size, 3), np.float32)
    for region, kind in enumerate(kinds):
        inside = nearest == region
        canvas[inside] = stuff_texture(rng, STUFF[kind], size, scale)[inside]
    return canvas, kinds.astype(np.uint8)[nearest]


def _place(rng: np.random.Generator, category: int, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    shape = THINGS[category].split()[1]
    return shape_coverage(shape, centre, side, rng.uniform(0, 2 * math.pi), size)


def _paint(rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray, category: int, scale: float) -> None:
    """Blend an object in: jittered colour of its pair, a soft shade over it."""
    rows, columns = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in map(np.unique, np.nonzero(coverage)))
    shade = 20 * smooth_noise(rng, len(canvas), (12 * scale, 12 * scale))
    painted = _colour(rng, THINGS[category].split()[0]) + shade[rows, columns, None]
    canvas[rows, columns] += coverage[rows, columns, None] * (painted - canvas[rows, columns])


def _clutter(rng: np.random.Generator, canvas: np.ndarray, scale: float, count: int) -> None:
    """Strokes in the objects' colours: too small to be one, labelled as what lies beneath."""
    from PIL import Image, ImageDraw

    size = len(canvas)
    cover, paint = Image.new('L', (size, size)), Image.new('RGB', (size, size))
    names = list(COLOURS)
    for _ in range(count):
        (x, y), reach, turn = rng.uniform(0, size, 2), rng.uniform(1.5, 5) * scale, rng.uniform(0, math.pi)
        dx, dy = reach * math.cos(turn), reach * math.sin(turn)
        red, green, blue = np.rint(_colour(rng, names[int(rng.integers(len(names)))])).astype(int).tolist()
        for layer, fill in ((cover, 255), (paint, (red, green, blue))):
            ImageDraw.Draw(layer).line([x - dx, y - dy, x + dx, y + dy], fill=fill, width=max(1, round(2 * scale)))
    struck = np.asarray(cover) > 0
    canvas[struck] += 0.8 * (np.asarray(paint, np.float32)[struck] - canvas[struck])


def _colour(rng: np.random.Generator, name: str) -> np.ndarray:
    return np.array(COLOURS[name], np.float32) + rng.uniform(-22, 22, 3).astype(np.float32)


def _finish(rng: np.random.Generator, canvas: np.ndarray, scale: float) -> np.ndarray:
    """Uneven light, sensor noise, and rounding to bytes."""
    size = len(canvas)
    light = 1 + 0.15 * smooth_noise(rng, size, (48 * scale, 48 * scale))
    noisy = canvas * light[..., None] + 9 * rng.standard_normal((size, size, 3), dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
