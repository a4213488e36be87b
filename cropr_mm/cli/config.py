"""From the command line to a config: read, changed by options, its library registered."""

from __future__ import annotations

import argparse
import copy
import difflib
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.checks import check_config
from ..utils.checks import nearest
from ..utils.libraries import register_library
from .errors import one_line

SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def load_config(args: argparse.Namespace, config: str | None = None) -> Config:
    """Read a config file and put the shared command line options into it.

    Args:
        args: of the command line.
        config: a file in place of ``args.config``, where a tool takes several; the options hold for all of them.

    Raises:
        FileNotFoundError: there is no such config; the message names similar ones.
        ModuleNotFoundError: the library that the config is for is not installed.
        ValueError: the file is no config, an option does not fit it, or what a CroprViT replaces in it has not gone
            completely.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = config or args.config
    cfg = read_config(config)
    cfg.launcher = args.launcher
    merge_options(cfg, args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(config).stem)
    register_library(cfg)
    check_config(cfg)
    return cfg


def read_config(file: str | Path, key: str = 'config ') -> Config:
    """Read a config file.

    Args:
        file: its path.
        key: what stands before it in a message.

    Raises:
        FileNotFoundError: there is no such file; the message names similar ones.
        ValueError: it is no config, or ends with an error, whose line is named.
    """
    shown, path = f'{key}{str(file)!r}', Path(file).expanduser()
    if not path.is_file():
        near = _similar(path)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise FileNotFoundError(f'{shown}: no such file{hint}')
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{shown}: a file that ends in {", ".join(SUFFIXES)} is expected')
    try:
        return Config.fromfile(str(path))
    except FileNotFoundError as error:
        missing = Path(error.filename or str(error))
        near = _similar(missing)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise FileNotFoundError(f'{shown}: {missing}, which it inherits from or reads: no such file{hint}') from error
    except ImportError as error:
        raise ValueError(f'{shown}: custom_imports: {one_line(error.__cause__ or error)}') from error
    except SyntaxError as error:
        where = f'{error.filename}, line {error.lineno}' if error.filename else f'line {error.lineno}'
        raise ValueError(f'{shown}: {error.msg} ({where})') from error
    except Exception as error:  # a config is a program, which may do anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = '' if '/mmengine/' in last.filename else f' (line {last.lineno})'
        raise ValueError(f'{shown}: {type(error).__name__}: {one_line(error)}{where}') from error


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Change settings of a config, as ``--cfg-options`` asks for.

    Raises:
        ValueError: a key leads nowhere, or its first part is nearly one that there is.
    """
    for key in options or ():
        first = key.partition('.')[0]
        known = [*cfg, *Runner.__init__.__code__.co_varnames]
        if first not in known and difflib.get_close_matches(first, known, cutoff=0.8):
            raise ValueError(f'--cfg-options {key}: the config has no {first}{nearest(first, known)}')
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(dict(options or {}))
    except Exception as error:
        for key, value in (options or {}).items():
            try:
                before.merge_from_dict({key: value})
            except Exception as reason:
                raise ValueError(f'--cfg-options {key}={value}: {one_line(reason)}') from error
        raise


def _similar(path: Path) -> list[str]:
    """Config files of the same folder with a similar name."""
    names = (file.name for file in path.parent.glob('*.py'))
    return [str(path.with_name(name)) for name in difflib.get_close_matches(f'{path.stem}.py', names, cutoff=0.5)]
