"""What set-up decides before it builds or downloads anything. Standard library only; nothing here changes a file.

Every check raises :class:`SetupError`, whose message names the setting, the value found and what is valid.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

PYTHONS = ((3, 9), (3, 12))
OLDEST_TORCH = (2, 4)
# torch's first version that needs a Python newer than 3.9, with that Python
TORCH_NEEDS_PYTHON = {(2, 9): (3, 10)}
GIGABYTE = 10**9


class SetupError(RuntimeError):
    """Something that the user has to change before set-up can go on."""


class Stack(NamedTuple):
    """One family of packages that provide the modules mmengine, mmcv, mmdet and mmseg."""

    mmcv: str  # compiled here
    mmcv_version: str
    libraries: tuple[str, ...]  # from the index, with what they import but do not declare
    build_tools: tuple[str, ...]  # must be there before mmcv is compiled
    oldest_python: tuple[int, int]


STACKS = {
    'openmmlab': Stack(
        'mmcv',
        '2.1.0',
        ('mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex', 'six'),
        # setuptools 80 and later no longer build mmcv 2.1.0
        ('setuptools>=77.0.3,<80', 'wheel', 'ninja', 'psutil', 'packaging'),
        (3, 9),
    ),
    'onedl': Stack(
        'onedl-mmcv',
        '2.3.6',
        ('onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1', 'onedl-mmsegmentation==1.4.2'),
        ('setuptools>=80,<82', 'wheel', 'ninja', 'psutil', 'packaging>=24.2'),
        (3, 10),
    ),
}


def dotted(version: Sequence[int]) -> str:
    """``(3, 9)`` -> ``'3.9'``."""
    return '.'.join(str(part) for part in version)


def check_choices(torch: str, openmmlab: str, python: tuple[int, int], platform: str = os.name) -> Stack:
    """Check the three choices that a user makes; return the package family."""
    if platform != 'posix':
        raise SetupError(
            f'os.name={platform!r}: set-up works on Linux and macOS. On Windows use WSL, or install the mm libraries '
            'yourself and run "pip install -e ."'
        )
    first, last = PYTHONS
    if not first <= python <= last:
        raise SetupError(f'PYTHON is Python {dotted(python)}; valid: {dotted(first)} to {dotted(last)}')
    match = re.fullmatch(r'(\d+)\.(\d+)\.\d+(\+\w+)?', torch)
    if not match or (int(match[1]), int(match[2])) < OLDEST_TORCH:
        raise SetupError(f'TORCH={torch!r}; valid: a full version from {dotted(OLDEST_TORCH)}.0 on, such as 2.13.0')
    for since, needed in TORCH_NEEDS_PYTHON.items():
        if (int(match[1]), int(match[2])) >= since and python < needed:
            raise SetupError(
                f'TORCH={torch} needs Python {dotted(needed)} or newer, PYTHON is Python {dotted(python)}; '
                f'valid: a newer PYTHON, or a TORCH below {dotted(since)}'
            )
    if openmmlab not in STACKS:
        raise SetupError(f'OPENMMLAB={openmmlab!r}; valid: {" or ".join(STACKS)}')
    stack = STACKS[openmmlab]
    if python < stack.oldest_python:
        raise SetupError(
            f'OPENMMLAB={openmmlab} needs Python {dotted(stack.oldest_python)} or newer, PYTHON is {dotted(python)}'
        )
    return stack


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """``$CROPR_MM_CACHE``, else ``cropr_mm`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if environ.get('CROPR_MM_CACHE'):
        return Path(environ['CROPR_MM_CACHE']).expanduser().resolve()
    base = environ.get('XDG_CACHE_HOME')
    return (Path(base) if base else Path.home() / '.cache') / 'cropr_mm'


def wheel_key(
    stack: Stack, torch: str, python: Sequence[int] = sys.version_info[:2], platform: str = '', cuda_ops: bool = False
) -> str:
    """Name of the cache folder of one compiled mmcv: all that its binary depends on.

    Args:
        torch: the full version with its local part, as in ``2.13.0+cpu``; CPU and CUDA builds differ in binary.
        platform: as ``sysconfig.get_platform()`` names it; that of this Python by default.
        cuda_ops: whether CUDA operators are compiled in, which depends on the machine and not on torch alone.
    """
    platform = re.sub(r'[-.]', '_', platform or sysconfig.get_platform())
    key = f'{stack.mmcv}-{stack.mmcv_version}-torch-{torch}-cp{python[0]}{python[1]}-{platform}'
    return f'{key}-cuda' if cuda_ops else key


def torch_matches(wanted: str, installed: str) -> bool:
    """Whether the installed torch is the wanted one; a version without local part takes any build of it."""
    return installed == wanted or ('+' not in wanted and installed.split('+')[0] == wanted)


def compile_jobs(environ: Mapping[str, str], cores: int, memory: int) -> int:
    """Compilers to run at a time: ``$MAX_JOBS``, else one per core, each with 1.5 GB of memory (bytes)."""
    if environ.get('MAX_JOBS'):
        if not environ['MAX_JOBS'].isdigit() or int(environ['MAX_JOBS']) < 1:
            raise SetupError(f'MAX_JOBS={environ["MAX_JOBS"]!r}; valid: a whole number from 1 on')
        return int(environ['MAX_JOBS'])
    return max(1, min(cores, int(memory / (1.5 * GIGABYTE))))


class Installed:
    """The packages of a virtual environment, read from its files: nothing is imported, so it takes no time."""

    def __init__(self, venv: Path, python: Sequence[int] = sys.version_info[:2]) -> None:
        from importlib.metadata import distributions  # not there in a Python that is too old for us

        self.site = venv / 'lib' / f'python{python[0]}.{python[1]}' / 'site-packages'
        self.versions: dict[str, str] = {}
        self.urls: dict[str, str] = {}  # of what came from a file or folder and not from an index
        for found in distributions(path=[str(self.site)]):
            name = re.sub(r'[-_.]+', '-', found.metadata['Name'] or '').lower()
            self.versions[name] = found.version
            self.urls[name] = json.loads(found.read_text('direct_url.json') or '{}').get('url', '')
        source = self.site / 'torch' / 'version.py'
        text = source.read_text() if 'torch' in self.versions and source.exists() else ''
        version = re.search(r"^__version__ = '(.+)'", text, re.M)
        cuda = re.search(r"^cuda\b.* = '(.+)'", text, re.M)
        self.torch = version[1] if version else None
        self.cuda = cuda[1] if cuda else None

    def mmcv_key(self) -> str | None:
        """The cache key that the installed mmcv came from, as pip recorded it; None for an mmcv from elsewhere."""
        urls = [self.urls[stack.mmcv] for stack in STACKS.values() if self.urls.get(stack.mmcv)]
        return Path(unquote(urlparse(urls[0]).path)).parent.name if urls else None


def check_environment(venv: Path, installed: Installed, torch: str, openmmlab: str, python: Sequence[int]) -> None:
    """Check that an environment that is there already can become the wanted one."""
    if not venv.exists():
        return
    config = venv / 'pyvenv.cfg'
    if not config.exists():
        raise SetupError(f'VENV={venv} exists and is no virtual environment (no pyvenv.cfg); valid: a new path')
    made_with = re.search(r'^version(?:_info)?\s*=\s*(\d+)\.(\d+)', config.read_text(), re.M)
    if made_with and (int(made_with[1]), int(made_with[2])) != tuple(python[:2]):
        raise SetupError(
            f'VENV={venv} was made with Python {made_with[1]}.{made_with[2]}, PYTHON is {dotted(python[:2])}; '
            'choose that Python or another VENV, or remove the folder'
        )
    for other, stack in STACKS.items():
        wrong = [name for name in (stack.mmcv, stack.libraries[0].split('==')[0]) if name in installed.versions]
        if other != openmmlab and wrong:
            raise SetupError(
                f'OPENMMLAB={openmmlab}, but VENV={venv} has {wrong[0]} of {other}, which owns the same files; '
                f'choose another VENV, such as .venv-{openmmlab}'
            )
    if installed.torch and not torch_matches(torch, installed.torch):
        raise SetupError(
            f'VENV={venv} has torch {installed.torch}, but TORCH={torch}, and a compiled mmcv fits one torch only. '
            f'Keep it with TORCH={installed.torch.split("+")[0]}, or change it with '
            f'"{venv}/bin/pip install torch=={torch}" and repeat (mmcv is then compiled anew, once)'
        )
    vision = installed.versions.get('torchvision')
    if vision and installed.torch and not installed.cuda and sys.platform == 'linux' and '+cpu' not in vision:
        raise SetupError(
            f'VENV={venv} has torchvision {vision} next to torch {installed.torch}: a CUDA build next to a CPU torch, '
            f'which fails on import and mmengine with it. Not needed: "{venv}/bin/pip uninstall torchvision"'
        )


def check_venv_module() -> None:
    """Check that this Python can make virtual environments (Debian ships that apart)."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f'{sys.executable} lacks the module {error.name}; on Debian and Ubuntu: apt install python3-venv'
        ) from error


def check_compiler(environ: Mapping[str, str] = os.environ, include: str = '') -> None:
    """Check that a C++17 compiler and Python's headers are there, by compiling a few lines with them."""
    chosen = environ.get('CXX', '').split() or ['c++' if shutil.which('c++', path=environ.get('PATH')) else 'g++']
    if not shutil.which(chosen[0], path=environ.get('PATH')):
        raise SetupError(
            f'mmcv has to be compiled, but there is no C++ compiler: CXX={environ.get("CXX", "")!r}, and {chosen[0]!r} '
            'is not found; valid: g++ 9 or clang 9 or newer. On Debian and Ubuntu: apt install g++; on macOS: '
            'xcode-select --install'
        )
    headers = Path(include or sysconfig.get_paths()['include'])
    if not (headers / 'Python.h').exists():
        raise SetupError(
            f'mmcv has to be compiled, but {headers / "Python.h"} is missing; on Debian and Ubuntu: '
            f'apt install python{dotted(sys.version_info[:2])}-dev'
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'check.cpp'
        source.write_text('#include <Python.h>\n#include <optional>\nstd::optional<int> found() { return 1; }\n')
        command = [*chosen, '-std=c++17', f'-I{headers}', '-c', str(source), '-o', str(source.with_suffix('.o'))]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(environ))
    if done.returncode:
        raise SetupError(f'the C++ compiler {chosen[0]!r} cannot compile C++17:\n{done.stderr[-2000:]}')


def check_disk(path: Path, gigabytes: float, what: str) -> None:
    """Check that the disk that holds ``path`` (which may not exist yet) has room."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / GIGABYTE
    if free < gigabytes:
        raise SetupError(f'{what} needs {gigabytes:g} GB, {path} has {free:.1f} GB free; choose another place for it')
