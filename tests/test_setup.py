"""Set-up with the base Python, and the uv and Python of the environment, played by a script that notes its calls."""

from __future__ import annotations

import configparser
import fcntl
import importlib
import json
import os
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
BASE = sys.executable
VERSION = '{}.{}'.format(*sys.version_info)
TAG = 'cp{}{}'.format(*sys.version_info)
TORCH = "__version__ = '2.13.0{}'\ncuda: Optional[str] = {}\n"
# As the real ones, `python -m venv` makes a folder, `uv pip install` folders of metadata, `python -m pip wheel` a file.
PLAYER = """#!{python}
import json, os, re, shutil, sys
from pathlib import Path
words, home, venv = sys.argv[1:], Path({home!r}), Path({venv!r})
site = venv / 'lib' / 'python{version}' / 'site-packages'
with open(home / 'asked.txt', 'a') as log:
    log.write(json.dumps(dict(words=words, env=dict(os.environ))) + chr(10))
if (home / 'fails').exists() and (home / 'fails').read_text() in words:
    sys.exit(1)
if words[:2] == ['-m', 'venv']:
    site.mkdir(parents=True, exist_ok=True)
    (venv / 'bin').mkdir(exist_ok=True)
    shutil.copy(sys.argv[0], venv / 'bin' / 'python')
elif words[-1] == 'uv':
    shutil.copy(sys.argv[0], venv / 'bin' / 'uv')
elif words[:2] == ['pip', 'install'] and '--target' not in words:
    for word in words:
        found = re.fullmatch('(?:.*/)?([a-z_-]+)(?:==|-)([0-9][0-9.]*[0-9])(?:-cp.*whl)?', word)
        if found:
            (site / ('-'.join(found.groups()) + '.dist-info')).mkdir(exist_ok=True)
            if found[1] == 'torch':
                (site / 'torch').mkdir(exist_ok=True)
                shutil.copy(home / 'version.py', site / 'torch')
elif 'wheel' in words:
    (Path(words[words.index('-w') + 1]) / {wheel!r}).touch()
elif 'get_device_capability' in words[-1] and (home / 'gpus').exists():
    print((home / 'gpus').read_text())
"""


@pytest.fixture(scope='module')
def env() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        return importlib.import_module('setup_env')


class World:
    """A home with a Python that is played, an empty cache, and a VENV that is not there yet."""

    def __init__(self, env: ModuleType, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.env, self.home, self.patch = env, home, patch
        self.move('venv')
        (home / 'version.py').write_text(TORCH.format('', 'None'))
        patch.setattr(sys, 'executable', str(home / 'python'))
        patch.setenv('CROPR_MM_CACHE', str(home / 'cache'))
        for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'CFLAGS', 'CXX', 'MAX_JOBS', 'UV_CONSTRAINT'):
            patch.delenv(name, raising=False)
        patch.setenv('MMCV_BASE_URL', (home / 'index').as_uri())  # where nothing is, unless a test puts it there
        patch.setattr(env, 'settings_of_pip', dict)
        patch.setattr(env, 'DRIVERS', ())  # no GPU, whatever this machine has
        self.check_compiler = env.check_compiler
        patch.setattr(env, 'check_compiler', lambda: None)  # of this machine, which need not have one

    def move(self, name: str) -> None:
        """Play an environment of this name."""
        self.venv = self.home / name
        values = {'python': BASE, 'home': str(self.home), 'venv': str(self.venv), 'version': VERSION}
        (self.home / 'python').write_text(PLAYER.format(wheel=f'mmcv-2.1.0-{TAG}-{TAG}-linux_x86_64.whl', **values))
        (self.home / 'python').chmod(0o755)

    def setup(self, torch: str = '2.13.0', openmmlab: str = 'openmmlab') -> list[SimpleNamespace]:
        """Run it; what was asked of uv and Python."""
        log = self.home / 'asked.txt'
        log.write_text('')
        self.env.Setup(self.venv, torch, openmmlab).run()
        return [SimpleNamespace(**json.loads(line)) for line in log.read_text().splitlines()]

    def asked(self) -> str:
        return (self.home / 'asked.txt').read_text()

    def wheels(self) -> list[str]:
        return [wheel.parent.name for wheel in (self.home / 'cache' / 'wheels').glob('*/*.whl')]


@pytest.fixture
def world(env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(env, tmp_path, monkeypatch)


def find(asked: list[SimpleNamespace], word: str) -> SimpleNamespace:
    (found,) = (one for one in asked if any(str(w).startswith(word) for w in one.words))
    return found


def test_from_nothing_and_again(world: World) -> None:
    asked = world.setup()
    assert asked[0].words[:2] == ['-m', 'venv'] and asked[-1].words == ['-c', world.env.TRIAL]
    build = find(asked, '--no-build-isolation').env
    assert '-O2 -g0' in build['CFLAGS'] and (build['FORCE_CUDA'], build['MMCV_WITH_OPS']) == ('0', '1')
    parity = find(asked, 'timm').words
    assert '--no-deps' in parity and 'torchvision==0.28.*' in parity and str(world.venv / 'parity') in parity
    libraries = find(asked, 'mmdet').words
    assert f'{ROOT}[tests]' in libraries and {'torch==2.13.0', 'setuptools<80'} <= {*libraries}
    assert world.setup() == []  # ready: nothing is asked


def test_a_compiled_mmcv_serves_the_next_environment_without_a_compiler(world: World) -> None:
    world.setup()
    world.move('other')
    world.patch.setattr(world.env, 'check_compiler', None)
    assert not any('--no-build-isolation' in one.words for one in world.setup())


def test_a_clone_that_waits_for_the_cache_compiles_nothing(world: World) -> None:
    key = f'mmcv==2.1.0-torch-2.13.0-{TAG}-{sysconfig.get_platform()}-cpu'
    (folder := world.home / 'cache' / 'wheels' / key).mkdir(parents=True)
    done = threading.Thread(target=world.setup)
    with (world.home / 'cache' / 'lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done.start()
        done.join(1.5)
        assert done.is_alive() and not world.wheels()
        (folder / 'mmcv-2.1.0-of-another-clone.whl').touch()
    done.join()
    assert '--no-build-isolation' not in world.asked() and 'mmcv-2.1.0-of-another-clone.whl' in world.asked()


@pytest.mark.parametrize('step', ['venv', 'torch==2.13.0', 'wheel', '--target', 'ftfy'])
def test_an_interrupted_setup_can_be_repeated(world: World, step: str) -> None:
    (world.home / 'fails').write_text(step)
    with pytest.raises(world.env.SetupError, match='repeat the command to resume'):
        world.setup()
    (world.home / 'fails').unlink()
    assert world.setup()[-1].words == ['-c', world.env.TRIAL]
    assert world.setup() == [] and len(world.wheels()) == 1


def test_torch_of_numpy_1_gets_numpy_1(world: World) -> None:
    asked = world.setup('2.1.2')
    assert sum('numpy<2' in one.words for one in asked) == sum('torch==2.1.2' in one.words for one in asked) == 2
    assert 'torchvision==0.16.*' in find(asked, 'timm').words


@pytest.mark.parametrize(
    ('choices', 'message'),
    [
        (('2.13.0', 'openmmlab', (3, 13)), r'Python 3\.13; valid here: 3\.8 to 3\.12'),
        (('2.13.0', 'openmmlab', (3, 7)), r'Python 3\.7; valid here: 3\.8 to 3\.12'),
        (('2.8.0', 'onedl', (3, 9)), r'Python 3\.9; valid here: 3\.10 to'),
        (('2.13', 'openmmlab', (3, 11)), r"TORCH='2\.13'; valid: a full version"),
        (('2.0.1', 'openmmlab', (3, 11)), r"TORCH='2\.0\.1'; valid: .* from 2\.1\.0"),
        (('2.13.0', 'onedk', (3, 11)), r"OPENMMLAB='onedk'; valid: openmmlab or onedl"),
    ],
)
def test_choices_that_cannot_work_are_named(env: ModuleType, tmp_path: Path, choices: tuple, message: str) -> None:
    with pytest.raises(env.SetupError, match=message):
        env.Setup(tmp_path, *choices)


def test_environments_that_do_not_fit_are_named(world: World) -> None:
    world.setup()
    for choices, message in (
        ({'torch': '2.12.0'}, r'VENV=.* was made with TORCH=2\.13\.0; choose the same, or another VENV'),
        ({'openmmlab': 'onedl'}, r'was made with OPENMMLAB=openmmlab'),
    ):
        with pytest.raises(world.env.SetupError, match=message):
            world.setup(**choices)
        assert world.asked() == ''
    world.venv = world.home  # not empty, and not of set-up
    with pytest.raises(world.env.SetupError, match=r'is there and not made by set-up; choose another VENV'):
        world.setup()


@pytest.mark.parametrize(
    ('lacks', 'message'),
    [('compiler', r'needs a C\+\+17 compiler.*apt install g\+\+ python3.*-dev'), ('headers', r'Python\.h')],
)
def test_what_compiling_lacks_is_named_before_anything_is_asked(world: World, lacks: str, message: str) -> None:
    world.patch.setattr(world.env, 'check_compiler', world.check_compiler)
    world.patch.setenv('CXX', 'no-such-c++')
    if lacks == 'headers':
        world.patch.setenv('CXX', str(world.home / 'c++'))
        (world.home / 'c++').write_text('#!/bin/sh\necho Python.h: No such file >&2\nexit 1\n')
        (world.home / 'c++').chmod(0o755)
    with pytest.raises(world.env.SetupError, match=f'(?s){message}'):
        world.setup()
    assert world.asked() == ''


def test_pip_tells_uv_where_to_look(env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'pip.conf').write_text(
        '[global]\nfind-links = /a\n  /b\nextra-index-url = https://x/simple\nindex-url = y\n'
    )
    monkeypatch.setenv('PIP_CONFIG_FILE', str(tmp_path / 'pip.conf'))
    monkeypatch.setenv('PIP_INDEX_URL', 'https://z/simple')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    found = env.settings_of_pip()
    assert found['UV_FIND_LINKS'].split(',')[-2:] == ['/a', '/b']
    assert (found['UV_DEFAULT_INDEX'], found['UV_INDEX']) == ('https://z/simple', 'https://x/simple')


@pytest.mark.parametrize(
    ('cuda', 'gpus', 'setting', 'key', 'forced'),
    [
        ("'13.0'", '', {}, 'cpu', '0'),  # a node without a GPU; the trial names it
        ("'13.0'", '9.0 8.0 9.0', {}, '8.0_9.0', '1'),
        ("'13.0'", '8.0', {'TORCH_CUDA_ARCH_LIST': '8.0;9.0'}, '8.0_9.0', '1'),
        ("'13.0'", '', {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': '8.6+PTX'}, '8.6+PTX', '1'),
    ],
)
def test_operators_for_gpus_have_their_own_place_in_the_cache(
    world: World, cuda: str, gpus: str, setting: dict, key: str, forced: str
) -> None:
    for name, value in setting.items():
        world.patch.setenv(name, value)
    (world.home / 'version.py').write_text(TORCH.format('+cu130', cuda))
    (world.home / 'gpus').write_text(gpus)
    build = find(world.setup(), '--no-build-isolation').env
    assert build['FORCE_CUDA'] == forced and build.get('TORCH_CUDA_ARCH_LIST', 'cpu') in (key, key.replace('_', ';'))
    assert world.wheels() == [f'mmcv==2.1.0-torch-2.13.0+cu130-{TAG}-{sysconfig.get_platform()}-{key}']


def test_force_cuda_that_cannot_work_is_named(world: World) -> None:
    world.patch.setenv('FORCE_CUDA', '1')
    for cuda, message in (('None', r'torch 2\.13\.0 and 0 GPUs; valid: a CUDA build'), ("'13.0'", '0 GPUs; valid')):
        world.move(f'cuda {cuda}')
        (world.home / 'version.py').write_text(TORCH.format('', cuda))
        with pytest.raises(world.env.SetupError, match=f'FORCE_CUDA=1 with {message}' if cuda == 'None' else message):
            world.setup()
    assert world.wheels() == []


@pytest.mark.parametrize('gpu', [False, True])
def test_cpu_operators_beside_a_cuda_torch_are_named(
    env: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, gpu: bool
) -> None:
    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: gpu), version=SimpleNamespace(cuda='13.0'))
    ops = SimpleNamespace(get_compiling_cuda_version=lambda: 'not available', nms=lambda *_: (0, [0]))
    torch.tensor = lambda *_, **__: __import__('numpy').zeros((2, 4))
    names = ('mmengine', 'mmcv', 'mmdet', 'mmdet.models', 'mmseg', 'mmseg.models')
    for name, module in {**dict.fromkeys(names, SimpleNamespace()), 'torch': torch, 'mmcv.ops': ops}.items():
        monkeypatch.setitem(sys.modules, name, module)
    if gpu:
        with pytest.raises(AssertionError, match='has a GPU: take another VENV'):
            exec(env.TRIAL, {})
    else:
        exec(env.TRIAL, {})
    assert 'FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST' in capsys.readouterr().out


# Versions as they are met: what mim installs for Python 3.8, a cluster's Python 3.10, a new environment, OneDL's.
@pytest.mark.parametrize(
    ('python', 'there'),
    [
        ('3.8.18', {'torch': '2.1.0+cu121', 'numpy': '1.24.4', 'mmengine': '0.10.7', 'mmcv': '2.1.0'}),
        (
            '3.10.13',
            {'torch': '2.1.2', 'numpy': '1.26.4', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'safetensors': '0.4.1'},
        ),
        ('3.11.7', {'torch': '2.13.0+cpu', 'numpy': '2.4.6', 'mmengine': '0.10.7', 'mmcv': '2.1.0'}),
        ('3.12.1', {'torch': '2.10.0', 'numpy': '2.2.0', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}),
    ],
)
def test_the_package_changes_nothing_in_environments_that_are_met(python: str, there: dict[str, str]) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert python in SpecifierSet(config['options']['python_requires'])
    requirements = [Requirement(line) for line in config['options']['install_requires'].split('\n') if line.strip()]
    assert {requirement.name for requirement in requirements} == {'numpy', 'safetensors', 'torch'}
    for requirement in requirements:  # safetensors itself requires nothing
        assert requirement.name not in there or there[requirement.name] in requirement.specifier
    assert set(there) >= {'numpy', 'torch'}


@pytest.mark.skipif(sys.platform != 'linux', reason='the indexes have wheels for Linux alone')
@pytest.mark.parametrize(
    ('openmmlab', 'folder', 'name'),
    [
        ('openmmlab', 'mmcv/dist/cu130/torch2.13.0', 'mmcv-2.1.0'),
        ('onedl', 'cu130-torch2130/simple/onedl-mmcv', 'onedl_mmcv-2.3.6'),
    ],
)
def test_a_wheel_of_the_index_is_preferred(world: World, openmmlab: str, folder: str, name: str) -> None:
    (world.home / 'version.py').write_text(TORCH.format('+cu130', "'13.0'"))
    page = world.home / 'index' / folder / 'index.html'
    page.parent.mkdir(parents=True)
    for tag, taken in (('cp27', False), (TAG, True)):  # for another Python, and for this one
        page.write_text(f'<a href="{name}-{tag}-{tag}-manylinux1_{os.uname().machine}.whl">it</a>')
        world.move(f'venv-{tag}')
        if openmmlab == 'openmmlab':
            build = find(world.setup(openmmlab=openmmlab), '--no-build-isolation').words
            assert (build[build.index('-f') + 1] == page.as_uri()) if taken else '-f' not in build
            for wheel in (world.home / 'cache' / 'wheels').glob('*/*.whl'):
                wheel.unlink()
        else:
            setup = world.env.Setup(world.venv, '2.13.0', openmmlab)
            (setup.site / 'torch').mkdir(parents=True)
            (setup.site / 'torch' / 'version.py').write_text(TORCH.format('+cu130', "'13.0'"))
            assert setup.prebuilt() == (page.as_uri() if taken else '')
