"""Make the environment that `make` works in: torch, the mm libraries around a compiled mmcv, and this package.

Standard library only; run by the base Python. uv makes the environment and installs into it; pip fetches or compiles
mmcv, whose wheel stays in a cache outside the clone. Checks come before the first download. Each step looks at what is
there and replaces nothing, so an interrupted set-up can be repeated, and a ready one ends within a second.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# mmcv and the setuptools that builds it, the libraries with what they import and do not declare, the oldest Python, and
# the index of wheels of mmcv that others have built
OPENMMLAB = (
    ('mmcv==2.1.0', 'setuptools<80'),
    ('mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex', 'six'),
    (3, 8),
    'https://download.openmmlab.com/mmcv/dist/{device}/torch2.{minor}.0/index.html',
)
ONEDL = (
    ('onedl-mmcv==2.3.6', 'setuptools>=80,<82'),
    ('onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1', 'onedl-mmsegmentation==1.4.2'),
    (3, 10),
    'https://mmwheels.onedl.ai/{device}-torch2{minor}0/simple/onedl-mmcv/index.html',
)
STACKS = {'openmmlab': OPENMMLAB, 'onedl': ONEDL}
DRIVERS = ('/dev/nvidiactl', '/dev/dxg')  # NVIDIA's, on Linux and in WSL
BUILD_TOOLS = ('pip', 'wheel', 'ninja', 'psutil', 'packaging')
# What tests compare with and users need not have: timm, mmpretrain, and what mmpretrain alone imports (as of then).
_IMPORTED = (
    'einops<=0.8.1',
    'importlib-metadata<=8.7.0',
    'markdown<=3.9',
    'mat4py',
    'model-index',
    'ordered-set',
    'zipp<=3.23.0',
)
PARITY = ('timm==1.0.31', 'mmpretrain==1.2.0', *_IMPORTED)
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
    """Something that the user has to change before set-up can go on."""


def cache_root() -> Path:
    """``$CROPR_MM_CACHE``, else ``cropr_mm`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(os.environ.get('CROPR_MM_CACHE') or f'{base}/cropr_mm').expanduser().absolute()


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


def check_disk(path: Path, gigabytes: float, what: str) -> None:
    """Check that the disk that holds ``path`` (which may not exist yet) has room."""
    path = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(path).free / 10**9
    if free < gigabytes:
        raise SetupError(f'{what} needs {gigabytes:g} GB, {path} has {free:.1f} GB free; choose another place for it')


def check_compiler() -> None:
    """Check that a C++17 compiler and Python's headers are there, by compiling a few lines with them."""
    command = [*(os.environ.get('CXX') or 'c++').split(), '-std=c++17', '-x', 'c++', '-fsyntax-only', '-']
    command.append(f'-I{sysconfig.get_paths()["include"]}')
    source = '#include <Python.h>\n#include <optional>\nstd::optional<int> found() { return 1; }\n'
    try:
        said = subprocess.run(command, input=source, stderr=subprocess.PIPE, text=True)
        error = said.stderr if said.returncode else ''
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
        (self.mmcv, self.setuptools), self.libraries, oldest, self.index = STACKS[openmmlab]
        if not oldest <= python <= (3, 12):
            raise SetupError('PYTHON is Python {}.{}; valid here: {}.{} to 3.12'.format(*python, *oldest))
        if not re.fullmatch(r'2\.[1-9]\d*\.\d+(\+\w+)?', torch):
            raise SetupError(f'TORCH={torch!r}; valid: a full version from 2.1.0 on, such as 2.13.0')
        self.torch, self.openmmlab, self.minor = torch, openmmlab, int(torch.split('.')[1])
        self.venv, self.python, self.tag = venv.absolute(), venv.absolute() / 'bin' / 'python', 'cp{}{}'.format(*python)
        self.site = self.venv / 'lib' / 'python{}.{}'.format(*python) / 'site-packages'
        self.stamp = self.venv / 'cropr_mm_setup.json'
        self.environ = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET')}
        self.gpu = any(map(os.path.exists, DRIVERS))

    def installed(self) -> dict[str, str]:
        """Packages of the environment and their versions, from the names of folders alone."""
        folders = (folder.stem.rpartition('-') for folder in self.site.glob('*.dist-info'))
        return {re.sub('[-_.]+', '-', name).lower(): version for name, _, version in folders}

    def lacks_mmcv(self) -> bool:
        return self.mmcv.split('==')[0] not in self.installed()

    def state(self) -> dict:
        """What makes an environment ready."""
        recipe = hashlib.sha256(Path(__file__).read_bytes() + (ROOT / 'setup.cfg').read_bytes()).hexdigest()
        source = [file.read_text() for file in self.site.glob('cropr_mm-*.dist-info/direct_url.json')]
        return {'made': [recipe, str(ROOT), source, self.gpu], 'packages': self.installed()}

    def ready(self) -> bool:
        """Whether nothing has changed since the last complete set-up; packages that were added do no harm."""
        before, now = json.loads(self.stamp.read_text()) if self.stamp.exists() else None, self.state()
        return bool(before and before['made'] == now['made'] and before['packages'].items() <= now['packages'].items())

    def check_environment(self) -> None:
        """Check that an environment that is there already can become the wanted one with nothing replaced."""
        there, where = self.installed(), f'VENV={self.venv}'
        if self.venv.exists() and not ((self.venv / 'pyvenv.cfg').exists() and self.site.exists()):
            raise SetupError(
                f'{where} is no virtual environment of PYTHON ({self.tag}); choose its Python or another VENV'
            )
        families = {
            name.split('==')[0] for (mmcv, _), libraries, *_ in STACKS.values() for name in (mmcv, libraries[0])
        }
        wrong = families - {self.mmcv.split('==')[0], self.libraries[0].split('==')[0]} & there.keys()
        if wrong:
            raise SetupError(
                f'OPENMMLAB={self.openmmlab}, but {where} has {min(wrong)}, which owns the same files; '
                f'choose another VENV, such as .venv-{self.openmmlab}'
            )
        torch = there.get('torch', self.torch)
        if self.torch not in (torch, torch.split('+')[0]):
            raise SetupError(
                f'{where} has torch {torch}, but TORCH={self.torch}, and a compiled mmcv fits one torch only; '
                f'choose another VENV, or TORCH={torch.split("+")[0]}'
            )

    def check_prerequisites(self) -> None:
        """Everything that could stop the set-up half-way and can be known now."""
        if not shutil.which('uv') and importlib.util.find_spec('ensurepip') is None:
            raise SetupError(f'{sys.executable} lacks ensurepip; on Debian and Ubuntu: apt install python3-venv')
        if 'torch' not in self.installed():
            check_disk(self.venv, 3, f'VENV={self.venv}')
        # Which build of torch will come is not known yet.
        if self.lacks_mmcv() and not self.cached('*') and not self.prebuilt('cpu'):
            self.check_compile()

    def check_compile(self) -> None:
        check_compiler()
        check_disk(cache_root(), 1, f'compiling mmcv in CROPR_MM_CACHE={cache_root()}')
        if not re.fullmatch('[1-9][0-9]*', os.environ.get('MAX_JOBS') or '1'):
            raise SetupError(f'MAX_JOBS={os.environ["MAX_JOBS"]!r}; valid: a whole number from 1 on')
        if os.environ.get('FORCE_CUDA') == '1' and not (os.environ.get('TORCH_CUDA_ARCH_LIST') or self.gpu):
            raise SetupError(
                'FORCE_CUDA=1 without a GPU; valid: with TORCH_CUDA_ARCH_LIST, such as "8.0;9.0" (A100, H100)'
            )

    def run(self) -> None:
        self.check_environment()
        if not self.ready():
            self.check_prerequisites()
            self.environ = {**settings_of_pip(), **self.environ}
            if not self.python.exists():
                self.call(self.uv(), 'venv', '--python', sys.executable, self.venv)
            if self.lacks_mmcv():
                self.install(f'torch=={self.torch}', self.setuptools, *BUILD_TOOLS)
                self.install('--no-deps', self.mmcv_wheel())
            self.install(*self.libraries, '-e', f'{ROOT}[tests]')
            # Beside torch the mm libraries would import them, and the index may have no torchvision for this torch.
            parity = ('--no-deps', '--target', self.venv / 'parity', *PARITY, f'torchvision==0.{self.minor + 15}.*')
            self.call(self.uv(), 'pip', 'install', '-p', self.python, *parity)
            self.call(self.python, '-c', TRIAL)
            self.stamp.write_text(json.dumps(self.state()))
        print(f'{self.venv} is ready (torch {self.installed()["torch"]}, {self.openmmlab})')

    def call(self, *command: object, **env: str) -> None:
        words = [str(word) for word in command]
        if subprocess.run(words, env={**self.environ, **env}).returncode:
            raise SetupError(
                f'{" ".join(words[:3])} … failed, see above. Repeat the command to go on; where versions conflict with '
                f'what VENV={self.venv} has, choose another VENV, as nothing there is replaced'
            )

    def uv(self) -> str:
        """The uv on the path, or else one of our own in the cache."""
        own = cache_root() / 'uv'
        if not shutil.which('uv') and not (own / 'bin' / 'uv').exists():
            self.call(sys.executable, '-m', 'venv', own)
            self.call(own / 'bin' / 'pip', 'install', '-q', '--disable-pip-version-check', 'uv')
        return shutil.which('uv') or str(own / 'bin' / 'uv')

    def install(self, *what: object) -> None:
        """Install with all that is there kept in its version: a conflict stops uv, and nothing is replaced."""
        kept = [f'{name}=={version}' for name, version in self.installed().items() if name != 'cropr-mm']
        kept += ['numpy<2'] * (self.minor < 3)  # torch up to 2.2 is compiled for numpy 1
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'installed-already.txt'
            file.write_text('\n'.join(kept))
            constraints = f'{self.environ.get("UV_CONSTRAINT", "")} {file if kept else ""}'.strip()
            self.call(self.uv(), 'pip', 'install', '-p', self.python, *what, UV_CONSTRAINT=constraints)

    def folder(self, operators: str) -> Path:
        """Where the cache keeps one wheel of mmcv: named after all that the binary depends on."""
        torch = self.installed().get('torch', f'{self.torch}*')
        key = f'{self.mmcv}-torch-{torch}-{self.tag}-{sysconfig.get_platform()}-{operators}'
        return cache_root() / 'wheels' / key

    def cached(self, operators: str) -> list[Path]:
        return list(self.folder('x').parent.glob(f'{self.folder(operators).name}/*.whl'))

    def prebuilt(self, device: str) -> str:
        """Address of the index that has a wheel of mmcv for this torch and Python, or '' (also if out of reach)."""
        page = self.index.format(device=device, minor=self.minor)
        if os.environ.get('MMCV_BASE_URL'):  # a mirror, as mim knows it
            page = f'{os.environ["MMCV_BASE_URL"]}/{page.split("/", 3)[3]}'
        wheel = (
            f'{self.mmcv.replace("-", "_").replace("==", "-")}-{self.tag}-{self.tag}-[^"]*_{platform.machine()}[.]whl'
        )
        try:
            with urllib.request.urlopen(page, timeout=5) as answer:
                return page if sys.platform == 'linux' and re.search(wheel, answer.read().decode()) else ''
        except (OSError, ValueError):
            return ''

    def operators(self, cuda: str | None) -> str:
        """``cpu``, or the architectures of GPUs, as ``TORCH_CUDA_ARCH_LIST`` names them, that mmcv is compiled for."""
        forced, listed = os.environ.get('FORCE_CUDA') == '1', os.environ.get('TORCH_CUDA_ARCH_LIST')
        if forced and not cuda:
            raise SetupError(f'FORCE_CUDA=1, but torch {self.installed()["torch"]} is a CPU build; choose another VENV')
        probe = (
            'import torch.cuda as c; print(*["%d.%d" % c.get_device_capability(i) for i in range(c.device_count())])'
        )
        seen = (
            subprocess.run([self.python, '-c', probe], stdout=subprocess.PIPE, text=True).stdout.split() if cuda else []
        )
        return (listed or ';'.join(sorted(set(seen)))) if forced or seen else 'cpu'

    def mmcv_wheel(self) -> Path:
        """The wheel of mmcv: from the cache, else from its index, else compiled."""
        match = re.search(r"^cuda\b.*= '(.+)'", (self.site / 'torch' / 'version.py').read_text(), re.M)
        operators = self.operators(match and match[1])
        folder = self.folder(re.sub(r'[^\w.+]+', '_', operators))
        if not list(folder.glob('*.whl')):
            page = self.prebuilt(f'cu{match[1].replace(".", "")}' if match else 'cpu')
            cores = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count() or 1
            memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
            jobs = os.environ.get('MAX_JOBS') or str(max(1, min(cores, memory // 1_500_000_000)))
            if not page:
                self.check_compile()
                print(
                    f'compiling {self.mmcv} ({operators}) with {jobs} jobs: about {18 / int(jobs):.0f} minutes',
                    flush=True,
                )
            flags = f'-O2 -g0 -DNDEBUG {os.environ.get("CFLAGS", "")}'  # Python's own often are -g -O3: twice the time
            env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs, 'CFLAGS': flags, 'CXXFLAGS': flags, 'FORCE_CUDA': '0'}
            if operators != 'cpu':
                env.update(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST=operators)
            cache_root().mkdir(parents=True, exist_ok=True)
            # pip's cache knows wheels by their source alone, whatever torch they were compiled for.
            command = ['wheel', '--no-cache-dir', '--no-deps', '--no-build-isolation', *(['-f', page] if page else [])]
            with tempfile.TemporaryDirectory(dir=cache_root()) as new:
                self.call(self.python, '-m', 'pip', *command, '-w', new, self.mmcv, **env)
                wheel = next(Path(new).glob('*.whl'))
                folder.mkdir(parents=True, exist_ok=True)
                wheel.rename(folder / wheel.name)  # complete or not there at all
        return next(folder.glob('*.whl'))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='folder of the virtual environment')
    parser.add_argument('--torch', default='2.13.0', help='version of torch, when it is not installed yet')
    parser.add_argument('--openmmlab', default='openmmlab', help='openmmlab or onedl: whose mm libraries')
    options = parser.parse_args()
    try:
        Setup(options.venv, options.torch, options.openmmlab).run()
    except (SetupError, KeyboardInterrupt) as error:
        print(f'set-up: {error or "interrupted; repeat the command to go on"}', file=sys.stderr)
        return 2 if isinstance(error, SetupError) else 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
