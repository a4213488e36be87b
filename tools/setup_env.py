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
# By family: mmcv, the libraries with what they import and do not declare, the setuptools that builds mmcv, the oldest
# Python, and the index of the wheels of mmcv that others have built.
STACKS = {
    'openmmlab': (
        'mmcv==2.1.0',
        ('mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex', 'six'),
        'setuptools<80',
        (3, 8),
        'https://download.openmmlab.com/mmcv/dist/{device}/torch2.{minor}.0/index.html',
    ),
    'onedl': (
        'onedl-mmcv==2.3.6',
        ('onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1', 'onedl-mmsegmentation==1.4.2'),
        'setuptools>=80,<82',
        (3, 10),
        'https://mmwheels.onedl.ai/{device}-torch2{minor}0/simple/onedl-mmcv/index.html',
    ),
}
BUILD_TOOLS = ('pip', 'wheel', 'ninja', 'psutil', 'packaging')
# What tests compare with and users need not have: timm, mmpretrain, and what mmpretrain alone imports.
PARITY = 'timm==1.0.31 mmpretrain==1.2.0 einops importlib-metadata markdown mat4py model-index ordered-set zipp'.split()
# Imports what users import and runs one compiled operator, on the GPU if there is one.
TRIAL = """
import torch, mmengine, mmcv, mmdet.models, mmseg.models
from mmcv.ops import get_compiling_cuda_version, nms
gpu = torch.cuda.is_available()
if torch.version.cuda and get_compiling_cuda_version() == 'not available':
    print('set-up: torch is a CUDA build, but this mmcv has CPU operators only, as where no GPU is seen. On GPUs NMS and '
          'RoIAlign fail with it. With CUDA operators: make setup VENV=other FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;9.0"')
    assert not gpu, 'this machine has a GPU; use another VENV, or hide the GPU with CUDA_VISIBLE_DEVICES='
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


def check_compiler(include: str = sysconfig.get_paths()['include']) -> None:
    """Check that a C++17 compiler and Python's headers are there, by compiling a few lines with them."""
    chosen = os.environ.get('CXX', '').split() or ['c++']
    if not shutil.which(chosen[0]):
        raise SetupError(
            f'mmcv has to be compiled, but the C++ compiler {chosen[0]!r} (CXX) is not found; valid: g++ 9, clang 9 or '
            'newer. On Debian and Ubuntu: apt install g++; on macOS: xcode-select --install'
        )
    if not Path(include, 'Python.h').exists():
        package = f'python{sys.version_info[0]}.{sys.version_info[1]}-dev'
        raise SetupError(
            f'mmcv has to be compiled, but {include}/Python.h is missing; on Debian: apt install {package}'
        )
    source = '#include <Python.h>\n#include <optional>\nstd::optional<int> found() { return 1; }\n'
    command = [*chosen, '-std=c++17', f'-I{include}', '-x', 'c++', '-', '-fsyntax-only']
    done = subprocess.run(command, input=source, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SetupError(f'the C++ compiler {chosen[0]!r} cannot compile C++17:\n{done.stderr[-2000:]}')


class Setup:
    """What the user chose, and the steps in the order of :meth:`run`."""

    def __init__(self, venv: Path, torch: str, openmmlab: str, python: tuple[int, int] = sys.version_info[:2]) -> None:
        if openmmlab not in STACKS:
            raise SetupError(f'OPENMMLAB={openmmlab!r}; valid: {" or ".join(STACKS)}')
        self.mmcv, self.libraries, self.setuptools, oldest, self.index = STACKS[openmmlab]
        if not oldest <= python <= (3, 12):
            raise SetupError('PYTHON is Python {}.{}; valid here: {}.{} to 3.12'.format(*python, *oldest))
        if not re.fullmatch(r'2\.[1-9]\d*\.\d+(\+\w+)?', torch):
            raise SetupError(f'TORCH={torch!r}; valid: a full version from 2.1.0 on, such as 2.13.0')
        self.torch, self.openmmlab, self.minor = torch, openmmlab, int(torch.split('.')[1])
        self.venv = venv.absolute()
        self.python, self.stamp = self.venv / 'bin' / 'python', self.venv / 'cropr_mm_setup.json'
        self.tag, self.site = (
            'cp{}{}'.format(*python),
            self.venv / 'lib' / 'python{}.{}'.format(*python) / 'site-packages',
        )
        self.environ = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET')}
        self.gpu = any(map(os.path.exists, ('/dev/nvidiactl', '/dev/dxg')))  # NVIDIA's driver on Linux and in WSL

    # -- what is there --------------------------------------------------------------------------------------------
    def installed(self) -> dict[str, str]:
        """Packages of the environment and their versions, from the names of folders alone."""
        folders = (folder.stem.rpartition('-') for folder in self.site.glob('*.dist-info'))
        return {re.sub('[-_.]+', '-', name).lower(): version for name, _, version in folders}

    def has_mmcv(self) -> bool:
        return self.mmcv.split('==')[0] in self.installed()

    def state(self) -> dict:
        """What makes an environment ready."""
        recipe = hashlib.sha256(Path(__file__).read_bytes() + (ROOT / 'setup.cfg').read_bytes()).hexdigest()
        source = [file.read_text() for file in self.site.glob('cropr_mm-*.dist-info/direct_url.json')]
        return {'made': [recipe, str(ROOT), source, self.gpu], 'packages': self.installed()}

    def ready(self) -> bool:
        """Whether nothing has changed since the last complete set-up; packages that were added do no harm."""
        if not self.stamp.exists():
            return False
        before, now = json.loads(self.stamp.read_text()), self.state()
        return bool(before['made'] == now['made'] and before['packages'].items() <= now['packages'].items())

    # -- checks ---------------------------------------------------------------------------------------------------
    def check_environment(self) -> None:
        """Check that an environment that is there already can become the wanted one with nothing replaced."""
        config, there = self.venv / 'pyvenv.cfg', self.installed()
        if self.venv.exists() and not (config.exists() and (self.site.exists() or not self.python.exists())):
            raise SetupError(
                f'VENV={self.venv} exists and is no virtual environment of PYTHON ({self.tag}); choose another, or its Python'
            )
        others = {name for stack in STACKS.values() for name in (stack[0], stack[1][0])} - {
            self.mmcv,
            self.libraries[0],
        }
        wrong = [name.split('==')[0] for name in sorted(others) if name.split('==')[0] in there]
        if wrong:
            raise SetupError(
                f'OPENMMLAB={self.openmmlab}, but VENV={self.venv} has {wrong[0]}, which owns the same files; '
                f'choose another VENV, such as .venv-{self.openmmlab}'
            )
        torch = there.get('torch', self.torch)
        if self.torch not in (torch, torch.split('+')[0]):
            raise SetupError(
                f'VENV={self.venv} has torch {torch}, but TORCH={self.torch}, and a compiled mmcv fits one torch only; '
                f'choose another VENV, or TORCH={torch.split("+")[0]}'
            )

    def check_prerequisites(self) -> None:
        """Everything that could stop the set-up half-way and can be known now."""
        if not shutil.which('uv') and importlib.util.find_spec('ensurepip') is None:
            raise SetupError(f'{sys.executable} lacks ensurepip; on Debian and Ubuntu: apt install python3-venv')
        if 'torch' not in self.installed():
            check_disk(self.venv, 3, f'VENV={self.venv}')
        # Whether torch will be a CPU build is not known before it is there.
        if not self.has_mmcv() and not self.cached('*') and not self.prebuilt('cpu'):
            self.check_compile()

    def check_compile(self) -> None:
        check_compiler()
        check_disk(cache_root(), 1, f'compiling mmcv in CROPR_MM_CACHE={cache_root()}')
        if os.environ.get('FORCE_CUDA') == '1' and not os.environ.get('TORCH_CUDA_ARCH_LIST') and not self.gpu:
            raise SetupError(
                'FORCE_CUDA=1 without a GPU; valid: with TORCH_CUDA_ARCH_LIST, such as "8.0;9.0" (A100, H100)'
            )

    # -- the steps ------------------------------------------------------------------------------------------------
    def run(self) -> None:
        self.check_environment()
        if self.ready():
            print(f'{self.venv} is ready (torch {self.installed()["torch"]}, {self.openmmlab})')
            return
        self.check_prerequisites()
        self.environ = {**settings_of_pip(), **self.environ}
        if not self.python.exists():
            self.call(self.uv(), 'venv', '--python', sys.executable, self.venv)
        if not self.has_mmcv():
            self.install(f'torch=={self.torch}', self.setuptools, *BUILD_TOOLS)
            self.install('--no-deps', self.mmcv_wheel())
        self.install(*self.libraries, '-e', f'{ROOT}[tests]')
        # Beside torch they would be imported by the mm libraries, and the index may have no torchvision for this torch.
        parity = (*PARITY, f'torchvision==0.{self.minor + 15}.*')
        self.call(
            self.uv(), 'pip', 'install', '-p', self.python, '--no-deps', '--target', self.venv / 'parity', *parity
        )
        self.call(self.python, '-c', TRIAL)
        self.stamp.write_text(json.dumps(self.state()))
        print(f'{self.venv} is ready (torch {self.installed()["torch"]}, {self.openmmlab})')

    def call(self, *command: object, **env: str) -> None:
        words = [str(word) for word in command]
        if subprocess.run(words, env={**self.environ, **env}).returncode:
            raise SetupError(f'{" ".join(words[:3])} … failed, see above; repeat the command to go on')

    def uv(self) -> str:
        """The uv on the path, or else our own in the cache."""
        own = cache_root() / 'uv'
        if not shutil.which('uv') and not (own / 'bin' / 'uv').exists():
            self.call(sys.executable, '-m', 'venv', own)
            self.call(own / 'bin' / 'pip', 'install', '-q', '--disable-pip-version-check', 'uv')
        return shutil.which('uv') or str(own / 'bin' / 'uv')

    def install(self, *what: object) -> None:
        """Install with all that is there kept in its version, so that a conflict stops uv and replaces nothing."""
        kept = [f'{name}=={version}' for name, version in self.installed().items() if name != 'cropr-mm']
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'installed-already.txt'
            file.write_text('\n'.join(kept + ['numpy<2'] * (self.minor < 3)))  # torch up to 2.2 is compiled for numpy 1
            constraints = f'{self.environ.get("UV_CONSTRAINT", "")} {file}'.strip()
            self.call(self.uv(), 'pip', 'install', '-p', self.python, *what, UV_CONSTRAINT=constraints)

    # -- mmcv -----------------------------------------------------------------------------------------------------
    def folder(self, operators: str) -> Path:
        """Where the cache keeps one wheel of mmcv: named after all that the binary depends on."""
        torch = self.installed().get('torch', f'{self.torch}*')
        key = f'{self.mmcv}-torch-{torch}-{self.tag}-{sysconfig.get_platform()}-{operators}'
        return cache_root() / 'wheels' / key

    def cached(self, operators: str) -> list[Path]:
        folder = self.folder(operators)
        return list(folder.parent.glob(f'{folder.name}/*.whl'))

    def prebuilt(self, device: str) -> str:
        """Address of the index that has a wheel of mmcv for this torch and Python, or '' (also if out of reach)."""
        page = self.index.format(device=device, minor=self.minor)
        base = os.environ.get('MMCV_BASE_URL')  # a mirror, as mim knows it
        page = f'{base}/{page.split("/", 3)[3]}' if base else page
        wheel = (
            f'{self.mmcv.replace("-", "_").replace("==", "-")}-{self.tag}-{self.tag}-[^"]*_{platform.machine()}[.]whl'
        )
        try:
            with urllib.request.urlopen(page, timeout=5) as answer:
                return page if sys.platform == 'linux' and re.search(wheel, answer.read().decode()) else ''
        except (OSError, ValueError):
            return ''

    def gpu_architectures(self, cuda: str | None) -> str:
        """What CUDA operators are compiled for, as ``TORCH_CUDA_ARCH_LIST`` names it; '' for CPU operators alone."""
        forced, wanted = os.environ.get('FORCE_CUDA') == '1', os.environ.get('TORCH_CUDA_ARCH_LIST')
        if not cuda:
            if forced:
                raise SetupError(
                    f'FORCE_CUDA=1, but torch {self.installed()["torch"]} is a CPU build; choose another VENV'
                )
            return ''
        probe = 'import torch.cuda as c; print(*sorted({"%d.%d" % c.get_device_capability(i) for i in range(c.device_count())}))'
        shown = subprocess.run(
            [self.python, '-c', probe], env=self.environ, stdout=subprocess.PIPE, text=True
        ).stdout.split()
        return wanted or ';'.join(shown) if forced or shown else ''

    def mmcv_wheel(self) -> Path:
        """The wheel of mmcv: from the cache, else from its index, else compiled."""
        match = re.search(r"^cuda\b.*= '(.+)'", (self.site / 'torch' / 'version.py').read_text(), re.M)
        architectures = self.gpu_architectures(match and match[1])
        operators = re.sub(r'[^\w.+]+', '_', f'cuda_{architectures}') if architectures else 'cpu'
        if not self.cached(operators):
            page = self.prebuilt(f'cu{match[1].replace(".", "")}' if match else 'cpu')
            links = ['--find-links', page] if page else []
            memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
            jobs = os.environ.get('MAX_JOBS') or str(max(1, min(os.cpu_count() or 1, memory // (3 * 10**9 // 2))))
            if not page:
                self.check_compile()
                print(
                    f'compiling {self.mmcv} ({operators}, {jobs} jobs): about {16 / int(jobs):.0f} minutes', flush=True
                )
            flags = f'-O2 -g0 -DNDEBUG {os.environ.get("CFLAGS", "")}'  # Python's own often have -g -O3: twice the time
            env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs, 'CFLAGS': flags, 'CXXFLAGS': flags, 'FORCE_CUDA': '0'}
            if architectures:
                env.update(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST=architectures)
            cache_root().mkdir(parents=True, exist_ok=True)
            # pip's cache knows wheels by their source alone, whatever torch they were compiled for.
            command = [self.python, '-m', 'pip', 'wheel', '--no-cache-dir', '--no-deps', '--no-build-isolation']
            with tempfile.TemporaryDirectory(dir=cache_root()) as folder:
                self.call(*command, *links, '-w', folder, self.mmcv, **env)
                wheel = next(Path(folder).glob('*.whl'))
                self.folder(operators).mkdir(parents=True, exist_ok=True)
                wheel.rename(self.folder(operators) / wheel.name)  # complete or not there at all
        return self.cached(operators)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='folder of the virtual environment')
    parser.add_argument('--torch', default='2.13.0', help='version of torch, when it is not installed yet')
    parser.add_argument('--openmmlab', default='openmmlab', help='openmmlab or onedl: whose mm libraries')
    options = parser.parse_args()
    try:
        Setup(options.venv, options.torch, options.openmmlab).run()
    except SetupError as error:
        print(f'set-up: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nset-up: interrupted; repeat the command to go on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
