"""What the plots of measurements have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..utils.io import whole_file


def save_figure(figure: Any, path: str | Path, title: str = '') -> Path:
    """Write a figure of matplotlib, whole or not at all, with a title and without frames around its panels."""
    for axis in figure.axes:
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=10)
    with whole_file(path) as partial:
        figure.savefig(partial)
    return Path(path)
