"""Settings of a config: what a ``type`` names, and whether a value is what its key expects.

The ``check_…`` functions return the value, or raise a ValueError that names the key, the value and what is valid.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def is_type(settings: Any, *names: str) -> bool:
    """Whether a config builds the class of one of these names, or one that inherits from it.

    mmengine takes the name, the name after a scope or a module (``'mmseg.CroprViT'``), and the class itself (its
    pure Python configs).

    Args:
        settings: a config; whatever is no dict with a type is none.
        names: of the class, without dots.
    """
    kind = settings.get('type') if isinstance(settings, Mapping) else None
    if isinstance(kind, type):
        return any(cls.__name__ in names for cls in kind.__mro__)
    return isinstance(kind, str) and kind.rsplit('.', 1)[-1] in names


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite integer or float; True and False are none."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def check_integer(key: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value, where it is an integer from ``least`` to ``most``."""
    if not is_integer(value) or value < least or (most is not None and value > most):
        raise ValueError(f'{key}={value!r}; {_integers(least, most)} is expected')
    return value


def _integers(least: int, most: int | None) -> str:
    if most is not None:
        return f'an integer from {least} to {most}'
    return 'a positive integer' if least == 1 else f'an integer of {least} or more'


def check_number(
    key: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value, where it is a finite number within all bounds that are given.

    Args:
        key: of the config.
        value: its value.
        least, most: bounds that are valid themselves.
        above, below: bounds that are not.
    """
    bounds = (
        (least, operator.ge, 'of {} or more'),
        (above, operator.gt, 'above {}'),
        (most, operator.le, 'at most {}'),
        (below, operator.lt, 'below {}'),
    )
    given = [(bound, holds, words) for bound, holds, words in bounds if bound is not None]
    if not is_number(value) or not all(holds(value, bound) for bound, holds, _ in given):
        valid = ' and '.join(words.format(bound) for bound, _, words in given)
        raise ValueError(f'{key}={value!r}; {f"a number {valid}".rstrip()} is expected')
    return value


def check_flag(key: str, value: Any) -> bool:
    """The value, where it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f'{key}={value!r}; True or False is expected')
    return value


def check_suffix(path: str | Path, suffixes: Sequence[str], key: str = '') -> Path:
    """A file to write, whose suffix says its format."""
    if Path(path).suffix not in suffixes:
        shown = f'{key}={str(path)!r}' if key else repr(str(path))
        raise ValueError(f'{shown}: a file name that ends in {" or ".join(suffixes)} is expected')
    return Path(path)


def nearest(name: str, valid: Iterable[str], most: int = 20) -> str:
    """The end of a message on a wrong name: those that are near, else all, where they are few."""
    names = [str(one) for one in dict.fromkeys(valid)]
    near = difflib.get_close_matches(name, names, n=2)
    if near:
        return f'; did you mean {" or ".join(map(repr, near))}?'
    return f'; valid are {", ".join(names)}' if 0 < len(names) <= most else ''
