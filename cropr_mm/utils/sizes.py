"""Sizes that an export leaves open: symbols in place of integers. Integers pass through."""

from __future__ import annotations

from typing import Any

import torch


def opened(size: int, least: int) -> int:
    """An open size, at least ``least``, as a symbol of its own.

    The term that gives the size would otherwise be part of every size that follows, and an export takes minutes. And
    no example decides for all sizes: where a decision depends on the symbol, the export fails.
    """
    if not isinstance(size, torch.SymInt):
        return size
    symbol: Any = torch.full((), size, dtype=torch.int64).item()
    torch._check(symbol >= least)
    return symbol


def surely(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds: of open ones, whether it holds for all of them."""
    if not isinstance(condition, torch.SymBool):
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # since PyTorch 2.2

    return statically_known_true(condition)
