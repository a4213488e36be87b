"""Make the environment that `make` works in: torch, the mm libraries around a compiled mmcv, and this package.

Standard library only; run by the base Python. uv installs, with the indexes and links of pip's configuration. mmcv is
compiled once: its wheel stays in a cache outside the clone. An interrupted set-up can be repeated, and a ready
environment ends it at once.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# mmcv, the setuptools that builds it, the libraries with what they import and do not declare, the oldest Python, and
# the index of wheels of mmcv that others have built
STACKS: dict[str, tuple] = {
    'openmmlab': (
        'mmcv==2.1.0',
        'setuptools<80',
        ('mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex', 'six'),
        (3, 8),
        'https://download.openmmlab.com/mmcv/dist/{device}/torch2.{minor}.0/index.html',
    ),
    'onedl': (
        'onedl-mmcv==2.3.6',
        'setuptools>=80,<82',
        ('onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1', 'onedl-mmsegmentation==1.4.2'),
        (3, 10),
        'https://mmwheels.onedl.ai/{device}-torch2{minor}0/simple/onedl-mmcv/index.html',
    ),
}
BUILD_TOOLS = ('pip', 'wheel', 'ninja', 'psutil', 'packaging')
DRIVERS = ('/dev/nvidiactl', '/dev/dxg')  # NVIDIA's, on Linux and in WSL
# What tests compare with and users need not have: timm, mmpretrain, and what mmpretrain alone imports (as of then).
PARITY = (
    *('timm==1.0.31', 'mmpretrain==1.2.0', 'einops<=0.8.1', 'importlib-metadata<=8.7.0', 'markdown<=3.9'),
    *('mat4py', 'model-index', 'ordered-set', 'zipp<=3.23.0'),
)
# Its interpreter runs the kernel on a CPU; beside torch, which finds it, its version would have to be torch's.
TRITON = 'triton==3.9.0; python_version>="3.10" and platform_system=="Linux"'
# Imports what users import and runs one compiled operator, on the GPU if there is one.
TRIAL = """
import torch, mmengine, mmcv, mmdet.models, mmseg.models
from mmcv.ops import get_compiling_cuda_version, nms
gpu = torch.cuda.is_available()
if torch.version.cuda and get_compiling_cuda_version() == 'not available':
    print('set-up: torch is a CUDA build, but mmcv has CPU operators only, as if compiled without a GPU; on one,',
          'NMS and RoIAlign would fail. With CUDA operators, where nvcc is:',
          'make setup VENV=another FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;9.0" (A100, H100)')
    assert not gpu, 'this machine has a GPU: take another VENV, or hide the GPU with CUDA_VISIBLE_DEVICES='
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.]], device='cuda' if gpu else 'cpu')
assert len(nms(boxes, boxes[:, 3] / 10, 0.5)[1]) == 1
"""


class SetupError(RuntimeError):
    """Something that the user has to change before set-up can continue."""


def cache_root() -> Path:
    """``$CROPR_MM_CACHE``, else ``cropr_mm`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(os.environ.get('CROPR_MM_CACHE') or f'{base}/cropr_mm').expanduser().absolute()


@contextmanager
def locked_cache() -> Iterator[None]:
    """Of several clones one compiles at a time, and the others find its wheel."""
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / 'lock').open('w') as file:
        with suppress(OSError):  # on a file system without locks each compiles its own
            fcntl.flock(file, fcntl.LOCK_EX)  # freed when the process ends, in whatever way
        yield


def settings_of_pip() -> dict[str, str]:
    """pip's indexes, links, constraints and certificates as variables of uv, which reads no settings of pip."""
    names = {'index-url': 'UV_DEFAULT_INDEX', 'extra-index-url': 'UV_INDEX', 'find-links': 'UV_FIND_LINKS'}
    names.update({'constraint': 'UV_CONSTRAINT', 'cert': 'SSL_CERT_FILE', 'no-index': 'UV_NO_INDEX'})
    found = {'UV_INDEX_STRATEGY': 'unsafe-best-match'}  # all indexes count alike, as with pip
    listed = subprocess.run([sys.executable, '-m', 'pip', 'config', 'list'], stdout=subprocess.PIPE, text=True).stdout
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(':env:')):  # the environment counts most
        key, _, value = line.partition('=')  # global.find-links='/opt/wheels'
        name = names.get(key.rpartition('.')[2])
        if name:
            found[name] = (',' if name == 'UV_FIND_LINKS' else ' ').join(ast.literal_eval(value).split())
    return found


def check_compiler() -> None:
    """Check that a C++17 compiler and Python's headers are there, by compiling a few lines with them."""
    command = [*(os.environ.get('CXX') or 'c++').split(), '-std=c++17', '-x', 'c++', '-fsyntax-only', '-']
    command.append(f'-I{sysconfig.get_paths()["include"]}')
    source = '#include <Python.h>\n#include <optional>\nstd::optional<int> found() { return 1; }\n'
    try:
        run = subprocess.run(command, input=source, stderr=subprocess.PIPE, text=True)
        error = run.stderr if run.returncode else ''
    except OSError as problem:
        error = str(problem)
    if error:
        version = '.'.join(map(str, sys.version_info[:2]))
        raise SetupError(
            'mmcv has to be compiled, which needs a C++17 compiler (CXX; g++ 9, clang 9 or newer) and the headers of '
            f'Python {version}. Found: {error[-2000:].strip()}\n'
            f'On Debian and Ubuntu: apt install g++ python{version}-dev; on macOS: xcode-select --install'
        )


class Setup:
    """What the user chose, and the steps in the order of :meth:`run`."""

    def __init__(self, venv: Path, torch: str, openmmlab: str, python: tuple[int, int] = sys.version_info[:2]) -> None:
        if openmmlab not in STACKS:
            raise SetupError(f'OPENMMLAB={openmmlab!r}; valid: {" or ".join(STACKS)}')
        self.mmcv, setuptools, self.libraries, oldest, self.index = STACKS[openmmlab]
        if not oldest <= python <= (3, 12):
            raise SetupError('PYTHON is Python {}.{}; valid here: {}.{} to 3.12'.format(*python, *oldest))
        if not re.fullmatch(r'2\.[1-9]\d*\.\d+(\+\w+)?', torch):
            raise SetupError(f'TORCH={torch!r}; valid: a full version from 2.1.0 on, such as 2.13.0')
        self.minor, self.tag = int(torch.split('.')[1]), 'cp{}{}'.format(*python)
        self.torch, self.torchvision = torch, f'torchvision==0.{self.minor + 15}.*'
        # In every command: uv keeps what fits. torch up to 2.2 is compiled for numpy 1.
        self.pins = (f'torch=={torch}', setuptools, *['numpy<2'] * (self.minor < 3))
        self.venv, self.python = venv.absolute(), venv.absolute() / 'bin' / 'python'
        self.site = self.venv / 'lib' / 'python{}.{}'.format(*python) / 'site-packages'
        self.choices = {'TORCH': torch, 'OPENMMLAB': openmmlab, 'PYTHON': self.tag}
        self.environ = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET')}

    def run(self) -> None:
        if self.stamped() != {**self.choices, 'recipe': self.recipe()}:
            self.check()
            self.stamp(recipe='unfinished')
            if not (self.venv / 'bin' / 'uv').exists():
                self.call(sys.executable, '-m', 'venv', self.venv)
                self.call(self.python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'uv')
            self.environ = {**settings_of_pip(), **self.environ}
            if not self.has_mmcv():
                self.install(*self.pins, *BUILD_TOOLS)
                self.install('--no-deps', self.mmcv_wheel())
            self.install(*self.pins, *self.libraries, '-e', f'{ROOT}[tests]')
            # Beside torch the mm libraries would import them, and the index may have no torchvision for this torch.
            self.install('--no-deps', '--target', self.venv / 'parity', *PARITY, self.torchvision)
            self.install('--no-deps', '--target', self.venv / 'triton', TRITON)
            self.call(self.python, '-c', TRIAL)
            self.stamp(recipe=self.recipe())
        print(f'{self.venv} is ready ({", ".join(f"{key}={value}" for key, value in self.choices.items())})')

    def recipe(self) -> str:
        """Digest of what a finished set-up depends on beside the choices; where it changed, set-up is repeated."""
        files = Path(__file__).read_bytes() + (ROOT / 'setup.cfg').read_bytes()
        return hashlib.sha256(files + f'{ROOT} {any(map(os.path.exists, DRIVERS))}'.encode()).hexdigest()

    def stamped(self) -> dict[str, str]:
        file = self.venv / 'cropr_mm_setup.json'
        return json.loads(file.read_text()) if file.exists() else {}

    def stamp(self, recipe: str) -> None:
        self.venv.mkdir(parents=True, exist_ok=True)
        (self.venv / 'cropr_mm_setup.json').write_text(json.dumps({**self.choices, 'recipe': recipe}))

    def check(self) -> None:
        """What would harm an environment, or stop set-up half-way, and is known before the first download."""
        made = self.stamped()
        if self.venv.exists() and not made:
            raise SetupError(f'VENV={self.venv} is there and not made by set-up; choose another VENV')
        other = [f'{key}={made[key]}' for key in self.choices if made.get(key, self.choices[key]) != self.choices[key]]
        if other:
            raise SetupError(f'VENV={self.venv} was made with {", ".join(other)}; choose the same, or another VENV')
        if not self.has_mmcv() and not self.cached('*') and not self.prebuilt():
            check_compiler()

    def has_mmcv(self) -> bool:
        return any(self.site.glob(f'{self.mmcv.replace("-", "_").replace("==", "-")}.dist-info'))

    def call(self, *command: object, **env: str) -> None:
        words = [str(word) for word in command]
        if subprocess.run(words, env={**self.environ, **env}).returncode:
            raise SetupError(f'{" ".join(words[:4])} … failed, see above; repeat the command to resume')

    def install(self, *what: object) -> None:
        self.call(self.venv / 'bin' / 'uv', 'pip', 'install', '-p', self.python, *what)

    def mmcv_wheel(self) -> Path:
        """The wheel of mmcv: from the cache, else from its index, else compiled."""
        operators = self.operators()
        with locked_cache():
            if not self.cached(operators):
                self.build(operators)
            return self.cached(operators)[0]

    def cached(self, operators: str) -> list[Path]:
        return list((cache_root() / 'wheels').glob(f'{self.key(operators)}/*.whl'))

    def key(self, operators: str) -> str:
        """Folder of a wheel in the cache: all that the binary depends on. A torch that is still to come is ``*``."""
        torch = self.version_of_torch()[0] or f'{self.torch}*'
        operators = re.sub(r'[^\w.+*]+', '_', operators)
        return f'{self.mmcv}-torch-{torch}-{self.tag}-{sysconfig.get_platform()}-{operators}'

    def prebuilt(self) -> str:
        """Address of the index that has a wheel of mmcv for this torch and Python, or '' (also if out of reach)."""
        cuda = self.version_of_torch()[1]
        page = self.index.format(device=f'cu{cuda.replace(".", "")}' if cuda else 'cpu', minor=self.minor)
        if os.environ.get('MMCV_BASE_URL'):  # a mirror, as mim knows it
            page = f'{os.environ["MMCV_BASE_URL"]}/{page.split("/", 3)[3]}'
        name = self.mmcv.replace('-', '_').replace('==', '-')
        wheel = f'{name}-{self.tag}-{self.tag}-[^"]*_{platform.machine()}[.]whl'
        try:
            with urllib.request.urlopen(page, timeout=5) as answer:
                return page if sys.platform == 'linux' and re.search(wheel, answer.read().decode()) else ''
        except (OSError, ValueError):
            return ''

    def version_of_torch(self) -> tuple[str, str]:
        """Of the torch in the environment, such as ``('2.13.0+cu130', '13.0')``: its version, and CUDA's or ''."""
        file = self.site / 'torch' / 'version.py'
        text = file.read_text() if file.exists() else ''
        found = [re.search(rf"^{name}\b.*= '(.+)'", text, re.M) for name in ('__version__', 'cuda')]
        return found[0][1] if found[0] else '', found[1][1] if found[1] else ''

    def operators(self) -> str:
        """``cpu``, or the architectures of GPUs, as ``TORCH_CUDA_ARCH_LIST`` names them, that mmcv is compiled for."""
        forced, listed = os.environ.get('FORCE_CUDA') == '1', os.environ.get('TORCH_CUDA_ARCH_LIST')
        version, cuda = self.version_of_torch()
        code = 'import torch.cuda as c; print(*["%d.%d" % c.get_device_capability(i) for i in range(c.device_count())])'
        run = [str(self.python), '-c', code]
        seen = subprocess.run(run, stdout=subprocess.PIPE, text=True).stdout.split() if cuda else []
        if forced and not (cuda and (listed or seen)):
            raise SetupError(
                f'FORCE_CUDA=1 with torch {version} and {len(seen)} GPUs; valid: a CUDA build of torch (another VENV), '
                'and a GPU or TORCH_CUDA_ARCH_LIST such as "8.0;9.0" (A100, H100)'
            )
        return (listed or ';'.join(sorted(set(seen)))) if forced or seen else 'cpu'

    def build(self, operators: str) -> None:
        """Put a wheel into the cache: the index's, or one compiled here."""
        page = self.prebuilt()
        if not page:
            check_compiler()
        cores = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count() or 1
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        jobs = os.environ.get('MAX_JOBS') or str(max(1, min(cores, memory // 1_500_000_000)))
        flags = f'-O2 -g0 -DNDEBUG {os.environ.get("CFLAGS", "")}'  # Python's own often are -g -O3: twice the time
        env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs, 'CFLAGS': flags, 'CXXFLAGS': flags, 'FORCE_CUDA': '0'}
        if operators != 'cpu':
            env.update(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST=operators)
        if not page:
            print(f'compiling {self.mmcv} ({operators}) with {jobs} jobs; with two about ten minutes', flush=True)
        with tempfile.TemporaryDirectory(dir=cache_root()) as new:
            # pip's cache knows wheels by their source alone, whatever torch they were compiled for.
            command = ['-m', 'pip', 'wheel', '--no-cache-dir', '--no-deps', '--no-build-isolation', '-w', new]
            self.call(self.python, *command, *(['-f', page] if page else []), self.mmcv, **env)
            folder = cache_root() / 'wheels' / self.key(operators)
            folder.mkdir(parents=True, exist_ok=True)
            for wheel in Path(new).glob('*.whl'):
                wheel.rename(folder / wheel.name)  # complete or not there at all


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='folder of the virtual environment')
    parser.add_argument('--torch', default='2.13.0', help='version of torch')
    parser.add_argument('--openmmlab', default='openmmlab', help='openmmlab or onedl: whose mm libraries')
    options = parser.parse_args()
    try:
        Setup(options.venv, options.torch, options.openmmlab).run()
    except (SetupError, KeyboardInterrupt) as error:
        print(f'set-up: {error or "interrupted; repeat the command to resume"}', file=sys.stderr)
        return 2 if isinstance(error, SetupError) else 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
