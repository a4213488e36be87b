"""What sample scenes are painted with: smooth noise, stuff textures, and rotated shapes as coverage maps."""

from __future__ import annotations

import math

import numpy as np

__all__ = ['SHAPES', 'shape_coverage', 'smooth_noise', 'stuff_texture']

_OVERSAMPLE = 4


def _ring(count: int, inner: float | None = None) -> np.ndarray:
    """A regular polygon, or with ``inner`` a star of ``count`` tips, scaled to unit area."""
    corners = count if inner is None else 2 * count
    angle = 2 * math.pi * np.arange(corners) / corners
    radius = np.ones(corners)
    if inner is not None:
        radius[1::2] = inner
    return _unit_area(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))


def _unit_area(corners: np.ndarray) -> np.ndarray:
    x, y = corners.T
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return corners / math.sqrt(area)


_ARM = 0.36
SHAPES = {
    'circle': _ring(32),
    'triangle': _ring(3),
    'square': _ring(4),
    'hexagon': _ring(6),
    'star': _ring(5, inner=0.45),
    'cross': _unit_area(
        np.array(
            [
                (_ARM, -1),
                (_ARM, -_ARM),
                (1, -_ARM),
                (1, _ARM),
                (_ARM, _ARM),
                (_ARM, 1),
                (-_ARM, 1),
                (-_ARM, _ARM),
                (-1, _ARM),
                (-1, -_ARM),
                (-_ARM, -_ARM),
                (-_ARM, -1),
            ]
        )
    ),
}
"""Corners (V, 2) of each shape around its centre. All have an area of 1, so that size says nothing about the class."""


def shape_coverage(name: str, centre: np.ndarray, side: float, angle: float, size: int) -> np.ndarray:
    """How much of each pixel a shape covers: (size, size) float32 in 0 to 1.

    Args:
        name (str): Key of ``SHAPES``.
        centre (np.ndarray): (2,) x and y in pixels.
        side (float): Square root of the shape's area, in pixels.
        angle (float): Rotation in radians.
        size (int): Side of the image in pixels.
    """
    from PIL import Image, ImageDraw

    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = SHAPES[name] @ turn * side + centre
    left, top = (max(0, int(corner) - 1) for corner in corners.min(axis=0))
    right, bottom = (min(size, int(corner) + 2) for corner in corners.max(axis=0))
    fine = Image.new('L', ((right - left) * _OVERSAMPLE, (bottom - top) * _OVERSAMPLE))
    ImageDraw.Draw(fine).polygon(
        [(float(x - left) * _OVERSAMPLE, float(y - top) * _OVERSAMPLE) for x, y in corners], fill=255
    )
    coverage = np.zeros((size, size), np.float32)
    coverage[top:bottom, left:right] = np.asarray(fine.reduce(_OVERSAMPLE), dtype=np.float32) / 255
    return coverage


def smooth_noise(rng: np.random.Generator, size: int, wave: tuple[float, float]) -> np.ndarray:
    """Random field (size, size) float32, about -1 to 1, that varies over ``wave`` = (down, across) pixels."""
    from PIL import Image

    rows, columns = (max(2, round(size / length) + 1) for length in wave)
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def stuff_texture(rng: np.random.Generator, name: str, size: int, scale: float) -> np.ndarray:
    """A canvas (size, size, 3) float32 full of one stuff class.

    The colours of the classes overlap; grain (sand), blades (grass) and waves (water) tell them apart.
    """
    base = {'sand': (182, 160, 118), 'grass': (112, 138, 84), 'water': (98, 138, 156)}[name]
    colour = np.array(base, np.float32) + rng.uniform(-14, 14, 3).astype(np.float32)
    if name == 'sand':
        pattern = 16 * rng.standard_normal((size, size), dtype=np.float32)
    elif name == 'grass':
        pattern = 34 * smooth_noise(rng, size, (7 * scale, 1.6 * scale))
        pattern = pattern.T if rng.random() < 0.5 else pattern
    else:
        y, x = np.mgrid[:size, :size].astype(np.float32) / scale
        turn, length = rng.uniform(0, math.pi), rng.uniform(5, 8)
        phase = (x * math.cos(turn) + y * math.sin(turn)) / length
        phase = phase + 0.35 * smooth_noise(rng, size, (14 * scale, 14 * scale))
        pattern = 20 * np.sin(2 * math.pi * phase + rng.uniform(0, 2 * math.pi)).astype(np.float32)
    pattern = pattern + 12 * smooth_noise(rng, size, (24 * scale, 24 * scale))
    return colour + pattern[..., None]
