"""Bars of progress: on a terminal, on stderr, and nowhere else."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Callable, TypeVar

T = TypeVar('T')
_INTERVAL = 0.1  # seconds between two drawings
_open: list[Any] = []  # the bars that are being drawn, of which a second one becomes a line


def track(items: Iterable[T], title: str, total: int | None = None, show: bool = True) -> Iterator[T]:
    """The items, one after the other, with a bar of how many are done.

    Args:
        items: what to go through.
        title: what is being done, in a word or two.
        total: how many there are; None asks ``items``, and where that does not know, the bar only counts.
        show: False draws nothing in any case.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(title, total, show) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def progress_bar(title: str, total: int | None, show: bool = True) -> Iterator[Callable[[], None]]:
    """As :func:`track`, for steps that the body counts by calling what it is given.

    It is drawn with rich, which mmengine brings, from within these calls: no thread draws in between, so that what is
    being timed is not disturbed. Lines that are printed meanwhile appear above it. At its end it is gone.
    """
    if not (show and sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    nested = bool(_open)
    bar = (
        _open[0]
        if nested
        else Progress(
            *columns,
            console=Console(file=sys.stderr),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
    )
    if not nested:
        _open.append(bar)
        atexit.register(bar.stop)  # a loop that an exception left may still be open
        bar.start()
    task = bar.add_task(title, total=total)
    bar.refresh()
    drawn = time.monotonic()

    def advance() -> None:
        nonlocal drawn
        bar.advance(task)
        if time.monotonic() - drawn >= _INTERVAL:
            bar.refresh()
            drawn = time.monotonic()

    try:
        yield advance
    finally:
        if nested:
            bar.remove_task(task)
        else:
            _open.clear()
            bar.stop()
            atexit.unregister(bar.stop)
