"""Make the environment that `make` works in: torch, the mm libraries around a compiled mmcv, and this package.

Standard library only; run by the base Python. All checks come before the first download. mmcv is compiled from its
source package against the installed torch (about 10 minutes on two cores) and kept in a cache outside the clone.
Each step looks at what is there, so an interrupted set-up goes on where it was, and a ready one ends within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

from setup_checks import (
    Installed,
    SetupError,
    Stack,
    cache_root,
    check_choices,
    check_compiler,
    check_disk,
    check_environment,
    check_venv_module,
    compile_jobs,
    wheel_key,
)

ROOT = Path(__file__).resolve().parents[1]
# What tests compare with or train and users need not have. mmpretrain comes with what it imports and the mm
# libraries do not bring. torchvision is named below: its version follows torch's.
PARITY = (
    'timm==1.0.31',
    'mmpretrain==1.2.0',
    'einops==0.8.1',
    'importlib-metadata==8.7.0',
    'markdown==3.9',
    'mat4py==0.6.0',
    'model-index==0.1.11',
    'ordered-set==4.1.0',
    'zipp==3.23.0',
)
# Imports what users import, runs one compiled operator.
SMOKE_TEST = """
import torch, mmengine, mmcv, mmdet.models, mmseg.models
from mmcv.ops import nms
assert len(nms(torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.]]), torch.tensor([.9, .8]), 0.5)[1]) == 1
"""


def say(text: str, end: str = '\n') -> None:
    print(text, end=end, flush=True)


class Setup:
    """The steps, in the order of :meth:`run`."""

    def __init__(self, venv: Path, torch: str, openmmlab: str) -> None:
        self.venv = venv.absolute()
        self.python = self.venv / 'bin' / 'python'
        self.stamp = self.venv / 'cropr_mm_setup.json'
        self.log = self.venv / 'cropr_mm_setup.log'
        self.torch = torch
        self.openmmlab = openmmlab
        self.stack: Stack = check_choices(torch, openmmlab, sys.version_info[:2])
        self.environ = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET')}
        self.environ.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1', PYTHONNOUSERSITE='1')

    # -- what is there --------------------------------------------------------------------------------------------
    def state(self) -> dict[str, dict[str, str]]:
        """What makes an environment ready: how it is made, and the packages in it."""
        here = Path(__file__).parent
        sources = [here / 'setup_env.py', here / 'setup_checks.py', ROOT / 'setup.cfg']
        recipe = hashlib.sha256(b''.join(source.read_bytes() for source in sources)).hexdigest()
        there = Installed(self.venv)
        made = {'recipe': recipe, 'torch': there.torch or '', 'cropr_mm': there.urls.get('cropr-mm', '')}
        return {'made': made, 'packages': there.versions}

    def ready(self) -> bool:
        """Whether nothing has changed since the last complete set-up; packages that were added do no harm."""
        try:
            before, now = json.loads(self.stamp.read_text()), self.state()
            return bool(before['made'] == now['made'] and before['packages'].items() <= now['packages'].items())
        except (OSError, ValueError, KeyError):
            return False

    def cuda_ops(self) -> bool:
        """Whether mmcv's own build would compile CUDA operators: torch is a CUDA build and sees a GPU."""
        if not Installed(self.venv).cuda:
            return False
        probe = (
            'import torch; from torch.utils.cpp_extension import CUDA_HOME; print(torch.cuda.is_available(), CUDA_HOME)'
        )
        out = subprocess.run([self.python, '-c', probe], env=self.environ, capture_output=True, text=True, check=True)
        gpu, cuda_home = out.stdout.split()
        if gpu == 'True' and cuda_home == 'None':
            raise SetupError(
                'torch sees a GPU, so mmcv is to be compiled with CUDA operators, but CUDA_HOME is unset and no '
                f'nvcc found; install the CUDA toolkit {Installed(self.venv).cuda}, or hide the GPU: '
                'CUDA_VISIBLE_DEVICES= make setup'
            )
        return gpu == 'True'

    # -- running commands -----------------------------------------------------------------------------------------
    def call(
        self,
        what: str,
        command: Sequence[object],
        progress: Callable[[], str] = str,
        keep: tuple[int, ...] = (),
        **env: str,
    ) -> None:
        """Run a command with its output in the log; show the time it takes, and the end of the log if it fails.

        ``keep`` are lock files that stay locked for as long as the command lives, should this process be killed.
        """
        say(what)
        started, terminal = time.monotonic(), sys.stdout.isatty()
        with open(self.log, 'ab') as log:
            log.write(f'\n$ {" ".join(map(str, command))}\n'.encode())
            log.flush()
            process = subprocess.Popen(
                list(map(str, command)),
                env={**self.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that an interrupt ends the compilers too
                pass_fds=keep,
            )
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=1 if terminal else 30)
                        break
                    line = time.strftime('  %M:%S ', time.gmtime(time.monotonic() - started)) + progress()
                    say(f'\r{line}' if terminal else line, end='' if terminal else '\n')
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
        if terminal:
            say('\r', end='')
        if process.returncode:
            tail = '\n'.join(self.log.read_text(errors='replace').splitlines()[-25:])
            raise SetupError(f'{what}: failed (exit status {process.returncode}).\n{tail}\nThe whole log: {self.log}')

    def pip(self, what: str, *arguments: object) -> None:
        self.call(what, [self.python, '-m', 'pip', *arguments])

    # -- the steps ------------------------------------------------------------------------------------------------
    def run(self) -> None:
        check_environment(self.venv, Installed(self.venv), self.torch, self.openmmlab, sys.version_info[:2])
        if self.ready():
            say(f'{self.venv} is ready (torch {Installed(self.venv).torch}, {self.openmmlab})')
            return
        self.check_prerequisites()
        started = time.monotonic()
        self.make_venv()
        with locked(self.venv / 'cropr_mm_setup.lock', f'another set-up of {self.venv}'):
            if self.ready():  # made by the one that this has waited for
                return
            self.install_torch()
            self.install_mm(self.mmcv_wheel())
            self.install_package()
            self.install_parity()
            self.call('trying it out', [self.python, '-c', SMOKE_TEST])
            self.stamp.write_text(json.dumps(self.state(), indent=1, sort_keys=True))
        say(f'{self.venv} is ready after {time.monotonic() - started:.0f} s (torch {Installed(self.venv).torch})')

    def check_prerequisites(self) -> None:
        """Everything that could stop the set-up half-way and can be known now."""
        check_venv_module()
        there = Installed(self.venv)
        if not there.torch:
            check_disk(self.venv, 3, f'VENV={self.venv}')
        guess = wheel_key(self.stack, there.torch or self.torch)
        if there.mmcv_key() == guess or (self.stack.mmcv in there.versions and not there.mmcv_key()):
            return
        name, _, platform = guess.partition(f'-torch-{there.torch or self.torch}')
        # The local part of the torch version (+cpu) is not known before it is installed.
        if not list((cache_root() / 'wheels').glob(f'{name}-torch-{there.torch or self.torch + "*"}{platform}*/*.whl')):
            check_compiler()
            check_disk(cache_root(), 1, f'compiling mmcv in CROPR_MM_CACHE={cache_root()}')
            compile_jobs(self.environ, 1, 0)

    def make_venv(self) -> None:
        if not (self.venv / 'bin' / 'pip').exists():
            say(f'making {self.venv} with Python {sys.version.split()[0]}')
            subprocess.run([sys.executable, '-m', 'venv', str(self.venv)], check=True, env=self.environ)

    def install_torch(self) -> None:
        if not Installed(self.venv).torch:
            self.pip(f'installing torch {self.torch}', 'install', f'torch=={self.torch}')
        self.pip('installing build tools', 'install', *self.stack.build_tools, self.same_torch())

    def same_torch(self) -> str:
        """The requirement that keeps pip from replacing torch."""
        return f'torch=={Installed(self.venv).versions["torch"]}'

    def mmcv_wheel(self) -> Path | None:
        """The compiled mmcv, from the cache or built now; None if the right one is installed."""
        there = Installed(self.venv)
        key = wheel_key(self.stack, there.torch or '', cuda_ops=self.cuda_ops())
        installed = there.mmcv_key()
        if self.stack.mmcv in there.versions and installed in (None, key):
            return None
        if installed:
            say(f'mmcv in {self.venv} was compiled as {installed}, but this is {key}: replacing it')
        wheels = cache_root() / 'wheels' / key
        build = cache_root() / 'build' / key
        with locked(build.with_name(f'{key}.lock'), 'another set-up, which compiles mmcv') as lock:
            if not list(wheels.glob('*.whl')):
                self.compile_mmcv(build, lock)
                wheels.mkdir(parents=True, exist_ok=True)
                built = next((build / 'out').glob('*.whl'))
                built.rename(wheels / built.name)  # complete or not there at all
                shutil.rmtree(build)
        return next(wheels.glob('*.whl'))

    def compile_mmcv(self, build: Path, lock: int) -> None:
        """Compile in a folder that stays when interrupted: ninja then compiles only what is missing."""
        requirement = f'{self.stack.mmcv}=={self.stack.mmcv_version}'
        own = ('--no-build-isolation', '--no-deps')
        if not (build / 'source').exists():
            shutil.rmtree(build, ignore_errors=True)
            self.pip(
                f'fetching {requirement}', 'download', *own, '--no-binary', ':all:', '-d', build / 'sdist', requirement
            )
            with tarfile.open(next((build / 'sdist').glob('*.tar.gz'))) as archive:
                if hasattr(tarfile, 'data_filter'):
                    archive.extractall(build / 'unpacked', filter='data')
                else:
                    archive.extractall(build / 'unpacked')
            next((build / 'unpacked').iterdir()).rename(build / 'source')
        shutil.rmtree(build / 'out', ignore_errors=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        jobs = compile_jobs(self.environ, cores, memory)

        def progress() -> str:
            plans = list((build / 'source' / 'build').glob('*/build.ninja'))
            files = sum(line.startswith('build ') for plan in plans for line in plan.read_text().splitlines())
            objects = sum(1 for _ in (build / 'source' / 'build').rglob('*.o')) if plans else 0
            return f'({objects} of {files} files)' if plans else ''

        say(f'compiling {requirement} with {jobs} jobs: about {20 / jobs:.0f} minutes, once for this torch and Python')
        command = [self.python, '-m', 'pip', 'wheel', '-v', *own, '-w', build / 'out', build / 'source']
        environ = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs)}
        self.call(f'compiling {requirement}', command, progress, keep=(lock,), **environ)

    def install_mm(self, wheel: Path | None) -> None:
        """One call for all of them, torch included, so that pip can neither mix nor replace anything."""
        if wheel:
            self.pip('installing mmcv', 'install', '--no-deps', '--force-reinstall', wheel)
        own = f'{self.stack.mmcv}=={Installed(self.venv).versions[self.stack.mmcv]}'
        self.pip('installing the mm libraries', 'install', *self.stack.libraries, own, self.same_torch())

    def install_package(self) -> None:
        self.pip('installing cropr_mm', 'install', '--no-build-isolation', '-e', f'{ROOT}[tests]', self.same_torch())

    def install_parity(self) -> None:
        """timm, mmpretrain and their torchvision, which only tests/ imports, in a folder of their own.

        Installed beside torch they would be imported by the mm libraries, and the index may have no torchvision for
        this build of torch. So they come without what they depend on; tests/parity.py knows how to import them.
        """
        target, new = self.venv / 'parity', self.venv / 'parity.new'
        minor = int((Installed(self.venv).torch or '').split('.')[1])
        packages = [*PARITY, f'torchvision==0.{minor + 15}.*']  # the one made for torch 2.minor
        mark, wanted = 'installed.txt', '\n'.join(packages)
        if (target / mark).exists() and (target / mark).read_text() == wanted:
            return
        shutil.rmtree(new, ignore_errors=True)
        self.pip('installing timm and mmpretrain for tests', 'install', '--no-deps', '--target', new, *packages)
        (new / mark).write_text(wanted)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)


@contextlib.contextmanager
def locked(path: Path, other: str) -> Iterator[int]:
    """Hold an exclusive lock, waiting for whoever has it; a killed process gives it up."""
    import fcntl  # not on Windows, where the checks have ended the set-up

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'waiting for {other}')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='folder of the virtual environment')
    parser.add_argument('--torch', default='2.13.0', help='version of torch, when it is not installed yet')
    parser.add_argument('--openmmlab', default='openmmlab', help='openmmlab or onedl: whose mm libraries')
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        Setup(options.venv, options.torch, options.openmmlab).run()
    except SetupError as error:
        say(f'set-up: {error}')
        return 2
    except KeyboardInterrupt:
        say('\nset-up: interrupted; repeat the command to go on')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
