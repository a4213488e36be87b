"""What the command lines share: options, places to write to, errors in one line, and what was written where."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import DictAction

from ..utils.io import check_place
from .errors import is_about_input, one_line

_WRONG_INPUT = (ValueError, OSError, ModuleNotFoundError)
PICTURES = ('.png', '.pdf', '.svg', '.jpg')


def key_value(text: str) -> str:
    """Type of an argument: ``KEY=VALUE``."""
    key, equals, _ = text.partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'{text!r}: KEY=VALUE is expected')
    return text


def new_file(text: str) -> str:
    """Type of an argument: a file to write. Checked before the work whose result it will hold."""
    return _place(text, folder=False)


def new_folder(text: str) -> str:
    """Type of an argument: a folder to write to."""
    return _place(text, folder=True)


def new_picture(text: str) -> str:
    """Type of an argument: a picture to write."""
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f'{text!r}: a file name that ends in {", ".join(PICTURES)} is expected')
    return new_file(text)


def _place(text: str, folder: bool) -> str:
    try:
        check_place(text, folder)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument(
        '--work-dir', type=new_folder, help='folder for logs and checkpoints (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=key_value,
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
    """End the program with one line instead of a traceback where its input is at fault.

    That is one of these exceptions, or one that a program raises to say so
    (:func:`~cropr_mm.cli.errors.is_about_input`). With the variable ``CROPR_MM_TRACEBACK`` the traceback stays.
    """
    name = Path(sys.argv[0]).name
    try:
        yield
    except KeyboardInterrupt:
        print(f'{name}: interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get('CROPR_MM_TRACEBACK') or not (isinstance(error, kinds) or is_about_input(error)):
            raise
        sys.exit(f'{name}: error: {one_line(error)}')


def print_written(*paths: str | Path | None) -> None:
    """Print one line per file or folder that a tool wrote, as its last lines; None, an option not given, is none."""
    for path in paths:
        if path is not None:
            print(f'written: {path}', flush=True)
