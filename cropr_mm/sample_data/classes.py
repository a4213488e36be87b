"""What the sample data shows: class names and colours, in the order of the label maps (first class is label 1)."""

from __future__ import annotations

__all__ = ['CLASSES', 'COLOURS', 'METAINFO', 'PALETTE', 'STUFF', 'THINGS', 'THING_METAINFO']

STUFF = ('sand', 'grass', 'water')
"""Textured regions that fill the whole image."""

THINGS = ('red circle', 'red triangle', 'blue square', 'blue star', 'yellow hexagon', 'yellow cross')
"""Countable objects: their colour tells a pair of classes, only their shape tells which of the two."""

CLASSES = STUFF + THINGS

PALETTE = (
    (216, 190, 140),
    (110, 150, 80),
    (96, 150, 176),
    (230, 60, 50),
    (255, 150, 130),
    (50, 70, 220),
    (140, 170, 255),
    (235, 200, 30),
    (255, 240, 150),
)
"""One RGB colour per class, to draw predictions with."""

COLOURS = {'red': (196, 62, 52), 'blue': (62, 86, 196), 'yellow': (212, 184, 62)}
"""What objects are painted with, before jitter and shading."""

METAINFO = dict(classes=CLASSES, palette=PALETTE)
"""For mmsegmentation: ``dict(type='BaseSegDataset', metainfo=METAINFO, reduce_zero_label=True, ...)``."""

THING_METAINFO = dict(classes=THINGS, palette=PALETTE[len(STUFF) :])
"""For mmdetection: ``dict(type='CocoDataset', metainfo=THING_METAINFO, ...)``."""
