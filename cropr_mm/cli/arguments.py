"""What the command lines share: options of a run, errors in one line, and what was written where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import DictAction

_WRONG_INPUT = (ValueError, FileNotFoundError, ModuleNotFoundError)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change settings of the config, e.g. train_cfg.max_iters=100 '
        'model.backbone.pruning.rate=16; lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes the one spelling or the other, depending on its version
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


@contextmanager
def plain_errors(kinds: tuple[type[Exception], ...] = _WRONG_INPUT) -> Iterator[None]:
    """End the program with one line instead of a traceback where its input is at fault: one of these exceptions."""
    try:
        yield
    except kinds as error:
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')


def print_written(*paths: str | Path | None) -> None:
    """Print one line per file or folder that a tool wrote, as its last lines; None, an option not given, is none."""
    for path in paths:
        if path is not None:
            print(f'written: {path}', flush=True)
