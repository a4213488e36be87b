"""Interleaved timing of several models: a busy or throttled machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.checks import check_integer
from ..utils.progress import track


@dataclass(frozen=True)
class Timing:
    """Rounds of one model.

    Attributes:
        batch_size: images per call.
        seconds: time per call in each round.
    """

    batch_size: int
    seconds: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """Median over the rounds."""
        return self.batch_size / statistics.median(self.seconds)

    @property
    def milliseconds(self) -> float:
        """Median time per call over the rounds."""
        return 1000 * statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return (high - low) / statistics.median(self.seconds)

    def ratio_to(self, other: Timing) -> float:
        """How many times as fast as another model that was timed in the same rounds."""
        return self.images_per_second / other.images_per_second


def compare_throughput(
    calls: Mapping[str, Callable[[], Any]],
    batch_size: int,
    rounds: int = 10,
    warmup: int = 2,
    min_seconds: float = 0.2,
    device: torch.device | str = 'cpu',
    grad: bool = False,
) -> dict[str, Timing]:
    """Time functions in turn: every round times each of them once.

    Args:
        calls: what to time; each call processes ``batch_size`` images.
        batch_size: images per call.
        rounds: how often; the median of the rounds counts.
        warmup: untimed calls of each in the beginning.
        min_seconds: short calls are repeated until one timing takes about this long.
        device: where the calls run; an accelerator is synchronised before and after.
        grad: whether the calls compute gradients (training steps).

    Raises:
        ValueError: ``rounds`` or ``batch_size`` below 1.
    """
    check_integer('rounds', rounds)
    check_integer('batch_size', batch_size)
    device = torch.device(device)
    with torch.inference_mode(not grad):
        repeats = {}
        for name, call in calls.items():
            for _ in range(warmup):
                call()
            repeats[name] = max(1, round(min_seconds / max(seconds_of(call, 1, device), 1e-9)))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for i in track(range(rounds), 'timing, rounds'):
            # A different one begins each round: none is always the first after a pause.
            for name in names[i % len(names) :] + names[: i % len(names)]:
                seconds[name].append(seconds_of(calls[name], repeats[name], device))
    return {name: Timing(batch_size, tuple(values)) for name, values in seconds.items()}


def seconds_of(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Seconds per call; the device is synchronised before and after."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def synchronise(device: torch.device) -> None:
    """Let an accelerator finish all work in its queue."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    elif device.type == 'mps':
        torch.mps.synchronize()
