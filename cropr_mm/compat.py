"""What the supported versions of Python (3.8 and newer) and PyTorch (2.1 and newer) call differently."""

from __future__ import annotations

from typing import Any

import torch


def remove_prefix(text: str, prefix: str) -> str:
    """``text.removeprefix(prefix)``, which Python has since 3.9."""
    return text[len(prefix) :] if text.startswith(prefix) else text


# Since PyTorch 2.3 for everyone; torch.compile knows the other one, which returns False, and takes it for True.
is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, 'is_compiling') else torch._utils.is_compiling


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The precision of autocast on a kind of device, or None where autocast is off."""
    if hasattr(torch, 'get_autocast_dtype'):  # PyTorch 2.4
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    if device_type == 'cuda' and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    if device_type == 'cpu' and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return None


def start_of(event: Any) -> int:
    """When an event of the profiler began, in nanoseconds, or as older versions of PyTorch count, in microseconds."""
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()
