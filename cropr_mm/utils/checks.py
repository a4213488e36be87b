"""Kinds of settings in a config: what its ``type`` says, and whether a value is what its key expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def is_type(settings: Any, *names: str) -> bool:
    """Whether a config builds the class of one of these names, or one that inherits from it.

    mmengine takes the name, the name behind a scope or a module (``'mmseg.CroprViT'``), and the class itself (its
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


def check_integer(key: str, value: Any, least: int = 1) -> int:
    """The value; a ValueError names the key where it is no integer of ``least`` (0 or 1) or more."""
    if not is_integer(value) or value < least:
        wanted = 'a positive integer' if least else 'an integer of 0 or more'
        raise ValueError(f'{key}={value!r}; {wanted} is expected')
    return value


def check_flag(key: str, value: Any) -> bool:
    """The value; a ValueError names the key where it is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f'{key}={value!r}; True or False is expected')
    return value
