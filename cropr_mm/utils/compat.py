"""What the supported versions of Python (3.8 and newer), PyTorch (2.1 and newer) and mmengine call differently."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import torch
from mmengine.config.utils import MODULE2PACKAGE


def remove_prefix(text: str, prefix: str) -> str:
    """``text.removeprefix(prefix)``, which Python has since 3.9."""
    return text[len(prefix) :] if text.startswith(prefix) else text


# Since PyTorch 2.3 for everyone; torch.compile knows the other one, which returns False, and takes it for True.
is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, 'is_compiling') else torch._utils.is_compiling


def makes_graph() -> bool:
    """Whether a graph is being made of the model: it is compiled, exported or traced."""
    return is_compiling() or torch.jit.is_tracing()


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


def let_mmengine_find_mmseg() -> None:
    """Let configs inherit from ``mmseg::…`` with OneDL's packages, too.

    mmengine looks for them in the distribution mmsegmentation, also OneDL's mmengine, which has it under another name.
    The module mmseg is there with either.
    """
    with suppress(PackageNotFoundError):
        distribution('onedl-mmsegmentation')
        MODULE2PACKAGE['mmseg'] = 'mmseg'
