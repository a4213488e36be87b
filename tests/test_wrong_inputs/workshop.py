"""A folder with data, configs and checkpoints, in which tools are run as a user runs them, within this process."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import resource
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.utils import ManagerMixin

from ..test_tools.conftest import ROOT, forget
from .table import Row

SECONDS = 180
"""After which a tool counts as hanging."""
LOGS = 'work_dirs'
"""What mmengine writes as a run begins may stay here, but no checkpoint and no part of a file."""


@dataclass
class Ended:
    """How a tool ended."""

    code: int
    output: str
    trace: str = ''
    left: list[str] = field(default_factory=list)

    def problems(self, parts: Sequence[str]) -> list[str]:
        """What is wrong with how it ended: nothing, where the last line has all these parts."""
        found = [f'left {name}' for name in self.left]
        found += ['ended with 0'] * (self.code == 0)
        found += ['a traceback'] * bool(self.trace or 'Traceback (most recent call last)' in self.output)
        return found + [f'the last line has no {part!r}' for part in parts if part not in self.last_line]

    @property
    def last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ''


def tool_file(name: str) -> Path:
    """``train`` is tools/train.py, ``camvid`` a data set converter."""
    return next(
        file for folder in ('', 'dataset_converters') if (file := ROOT / 'tools' / folder / f'{name}.py').is_file()
    )


class Workshop:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools: dict[str, ModuleType] = {}

    def row(self, row: Row) -> Ended:
        """Run what a row of the table says."""
        if row.command.startswith('python '):
            return self.run_code(row.command[len('python ') :])
        case = self.root / 'case.py'
        if row.config:
            case.write_text(row.config)
        try:
            return self.run(row.command)
        finally:
            case.unlink(missing_ok=True)

    def run_on_full_disk(self, row: Row, size: int) -> Ended:
        """Run a row while no file can grow beyond ``size`` bytes, as on a disk that is full."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            return self.row(row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def run_code(self, code: str) -> Ended:
        """A line of Python, whose traceback ends with the message."""
        names: dict[str, Any] = {}
        exec('from cropr_mm import *; from mmengine.config import Config; from mmengine.registry import MODELS', names)
        exec('import torch; from cropr_mm.models import *; from cropr_mm.models.pruning import Schedule', names)
        with self.as_process(['']) as printed:
            try:
                eval(code, names)
                return Ended(0, printed.getvalue())
            except (ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
                lines = traceback.format_exception_only(type(error), error)
                return Ended(1, printed.getvalue() + ''.join(lines))
            except BaseException:
                return Ended(1, '', traceback.format_exc())

    def run(self, command: str) -> Ended:
        """``train seg.py --resume`` is ``python tools/train.py seg.py --resume`` in this folder."""
        name, *arguments = shlex.split(command)
        before = set(self.files())
        with self.as_process([str(tool_file(name)), *arguments]) as printed:
            code, trace = self.end_of(name)
        left = sorted(set(self.files()) - before)
        shutil.rmtree(self.root / LOGS, ignore_errors=True)
        return Ended(code, printed.getvalue(), trace, left)

    def end_of(self, name: str) -> tuple[int, str]:
        """The exit code, and the traceback where there is one."""
        try:
            if name not in self.tools:
                spec: Any = importlib.util.spec_from_file_location(f'tool_{name}', tool_file(name))
                self.tools[name] = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = self.tools[name]
                spec.loader.exec_module(self.tools[name])
            return self.tools[name].main() or 0, ''
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
                return 1, ''
            return end.code or 0, ''
        except BaseException:
            return 1, traceback.format_exc()

    @contextlib.contextmanager
    def as_process(self, argv: list[str]) -> Iterator[io.StringIO]:
        """The state in which a process begins, and what this one had afterwards."""
        forget(ManagerMixin)
        printed, old_argv, old_folder, environ = io.StringIO(), sys.argv, os.getcwd(), dict(os.environ)
        sys.argv = argv
        os.chdir(self.root)
        old_alarm = signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
                yield printed
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old_alarm)
            sys.argv = old_argv
            os.chdir(old_folder)
            os.environ.clear()
            os.environ.update(environ)

    def files(self) -> Iterator[str]:
        """Paths of this folder that a tool has no reason to write in vain."""
        for folder, folders, names in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            logs = here.parts[:1] == (LOGS,)
            for name in [*folders, *names]:
                if (not logs and (here / name) != Path(LOGS)) or '.partial' in name or name.endswith('.pth'):
                    yield str(here / name)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f'not ended after {SECONDS} s')
