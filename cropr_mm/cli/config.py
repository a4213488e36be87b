"""From the command line to a config: read, changed by options, its library registered."""

from __future__ import annotations

import argparse
import difflib
import os
from pathlib import Path

from mmengine.config import Config

from ..engine.checks import check_config
from ..utils.libraries import register_library


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and put the shared command line options into it.

    Raises:
        FileNotFoundError: there is no such config; the message names similar ones.
        ModuleNotFoundError: the library that the config is for is not installed.
        ValueError: A CroprViT stands in the config, and what it replaces has not gone completely.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = Path(args.config).expanduser()
    if not path.is_file():
        near = _similar(path)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise FileNotFoundError(f'config {str(args.config)!r}: no such file{hint}')
    cfg = Config.fromfile(str(path))
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', path.stem)
    register_library(cfg)
    check_config(cfg)
    return cfg


def _similar(path: Path) -> list[str]:
    """Config files of the same folder with a similar name."""
    names = (file.name for file in path.parent.glob('*.py'))
    return [str(path.with_name(name)) for name in difflib.get_close_matches(f'{path.stem}.py', names, cutoff=0.5)]
