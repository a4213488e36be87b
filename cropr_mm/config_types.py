"""What a config's ``type`` says, in whichever way it is written."""

from __future__ import annotations

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
