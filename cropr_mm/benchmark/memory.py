"""How much memory a call needs at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ..utils.compat import start_of


def peak_memory(call: Callable[[], Any], device: torch.device | str = 'cpu') -> int:
    """Bytes that torch has allocated at the peak of a call beyond what it had before.

    Args:
        call: run once.
        device: ``'cuda'``: counted by its allocator; ``'cpu'``: from the allocations that PyTorch's profiler records,
            without what other libraries allocate.

    Raises:
        ValueError: another device.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != 'cpu':
        raise ValueError(f"device={str(device)!r}: peak memory is known for 'cpu' and 'cuda'")
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # else the profiler of PyTorch 2.13 prints when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    allocations = sorted((e for e in events if e.name() == '[memory]'), key=start_of)
    peak = current = 0
    for event in allocations:
        current += event.nbytes()
        peak = max(peak, current)
    return peak
