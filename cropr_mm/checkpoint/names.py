"""Names of weights: what wrappers put into them, and how messages list them."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.compat import remove_prefix

_WRAPPERS = ('_fsdp_wrapped_module.', '_orig_mod.')  # of FSDP and torch.compile, which wrap any part of a model


def strip_wrappers(name: str) -> str:
    """A weight's name without what DDP, mmengine's EMA, FSDP and ``torch.compile`` put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, '')
    return remove_prefix(name, 'module.')


def strip_module(name: str) -> str:
    """As :func:`strip_wrappers`, for the name of a module (``'module.backbone'``, ``'module'``) in metadata."""
    return strip_wrappers(f'{name}.')[:-1]


def shorten(names: Sequence[str], limit: int = 12) -> str:
    """The first names, and how many more there are."""
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')
