"""Set-up with uv and the Python of the environment played by a script that records what they are asked."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import stat
import sys
import sysconfig
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
TAG = f'cp{sys.version_info[0]}{sys.version_info[1]}'
SITE = Path('lib') / f'python{sys.version_info[0]}.{sys.version_info[1]}' / 'site-packages'
TORCH = "__version__ = '2.13.0{}'\ncuda: Optional[str] = {}\n"
# As the real ones, `uv venv` makes a folder, `uv pip install` folders of metadata, `python -m pip wheel` a file.
PLAYER = """#!{python}
import json, os, re, shutil, sys
from pathlib import Path
words, home, site = sys.argv[1:], Path({home!r}), Path({site!r})
files = os.environ.get('UV_CONSTRAINT', '').split()
asked = dict(words=words, env=dict(os.environ), kept=''.join(Path(file).read_text() for file in files).split())
with open(home / 'asked.txt', 'a') as log:
    log.write(json.dumps(asked) + chr(10))
if (home / 'fails').exists() and (home / 'fails').read_text() in words:
    sys.exit(1)
if words[0] == 'venv':
    site.mkdir(parents=True)
    (site.parents[2] / 'pyvenv.cfg').touch()
    (site.parents[2] / 'bin').mkdir()
    shutil.copy(sys.argv[0], site.parents[2] / 'bin' / 'python')
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
    """A home with a uv that is played, an empty cache, and a VENV that is not there yet."""

    def __init__(self, env: ModuleType, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.env, self.home, self.venv, self.site = env, home, home / 'venv', home / 'venv' / SITE
        self.write_player()
        (home / 'version.py').write_text(TORCH.format('', 'None'))
        patch.setenv('PATH', f'{home}{os.pathsep}{os.environ["PATH"]}')
        patch.setenv('CROPR_MM_CACHE', str(home / 'cache'))
        patch.setenv('MMCV_BASE_URL', (home / 'index').as_uri())
        for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'CFLAGS', 'CXX', 'MAX_JOBS', 'UV_CONSTRAINT'):
            patch.delenv(name, raising=False)
        patch.setattr(env, 'settings_of_pip', dict)
        patch.setattr(env, 'DRIVERS', ())  # no GPU, whatever this machine has
        self.check_compiler = env.check_compiler
        patch.setattr(env, 'check_compiler', lambda: None)  # of this machine, which need not have one

    def write_player(self) -> None:
        values = {'python': sys.executable, 'home': str(self.home), 'site': str(self.site)}
        player = self.home / 'uv'
        player.write_text(PLAYER.format(wheel=f'mmcv-2.1.0-{TAG}-{TAG}-linux_x86_64.whl', **values))
        player.chmod(player.stat().st_mode | stat.S_IXUSR)

    def setup(self, torch: str = '2.13.0', openmmlab: str = 'openmmlab') -> list[SimpleNamespace]:
        """Run it; what was asked of uv and Python."""
        log = self.home / 'asked.txt'
        log.write_text('')
        self.env.Setup(self.venv, torch, openmmlab).run()
        return self.asked()

    def asked(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(**json.loads(line)) for line in (self.home / 'asked.txt').read_text().splitlines()]

    def wheels(self) -> list[str]:
        return [wheel.parent.name for wheel in (self.home / 'cache' / 'wheels').glob('*/*.whl')]

    def have(self, *packages: str) -> None:
        """A virtual environment with packages, such as ``torch-2.13.0``, that set-up has not made."""
        for package in packages:
            (self.site / f'{package}.dist-info').mkdir(parents=True)
        (self.venv / 'pyvenv.cfg').touch()
        (self.venv / 'bin').mkdir(exist_ok=True)
        (self.venv / 'bin' / 'python').write_bytes((self.home / 'uv').read_bytes())
        (self.venv / 'bin' / 'python').chmod(0o755)


@pytest.fixture
def world(env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(env, tmp_path, monkeypatch)


def find(asked: list[SimpleNamespace], word: str) -> SimpleNamespace:
    (found,) = (one for one in asked if any(str(w).startswith(word) for w in one.words))
    return found


def test_from_nothing_and_again(world: World) -> None:
    asked = world.setup()
    assert asked[0].words[0] == 'venv' and asked[-1].words == ['-c', world.env.TRIAL]
    build = next(one.env for one in asked if '--no-build-isolation' in one.words)
    assert '-g0' in build['CFLAGS'] and (build['FORCE_CUDA'], build['MMCV_WITH_OPS']) == ('0', '1')
    parity = find(asked, 'timm').words
    assert '--no-deps' in parity and 'torchvision==0.28.*' in parity and str(world.venv / 'parity') in parity
    assert f'{ROOT}[tests]' in find(asked, 'mmdet').words
    assert world.setup() == []  # ready: nothing is asked


def test_a_package_added_by_hand_does_no_harm_and_one_taken_away_is_put_back(world: World) -> None:
    world.setup()
    (world.site / 'rich-1.0.dist-info').mkdir()
    assert world.setup() == []
    (world.site / 'mmdet-3.3.0.dist-info').rmdir()
    assert 'mmdet==3.3.0' in find(world.setup(), 'mmdet').words
    assert len(world.wheels()) == 1


def test_a_compiled_mmcv_serves_the_next_environment_without_a_compiler(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.setup()
    world.venv, world.site = world.home / 'other', world.home / 'other' / SITE
    world.write_player()
    monkeypatch.setattr(world.env, 'check_compiler', None)
    assert not any('--no-build-isolation' in one.words for one in world.setup())


@pytest.mark.parametrize('step', ['torch==2.13.0', 'wheel', '--target', 'ftfy'])
def test_an_interrupted_setup_can_be_repeated(world: World, step: str) -> None:
    (world.home / 'fails').write_text(step)
    with pytest.raises(world.env.SetupError, match='Repeat the command to go on'):
        world.setup()
    (world.home / 'fails').unlink()
    assert world.setup()[-1].words == ['-c', world.env.TRIAL]
    assert world.setup() == []


def test_nothing_that_is_installed_is_replaced(world: World) -> None:
    world.have('torch-2.13.0+cpu', 'mmcv-2.0.1', 'numpy-1.26.4', 'cropr_mm-0.0.9')
    asked = world.setup()
    assert not any('torch==2.13.0' in one.words or '--no-build-isolation' in one.words for one in asked)
    assert not world.wheels()
    assert set(find(asked, 'mmdet').kept) == {'torch==2.13.0+cpu', 'mmcv==2.0.1', 'numpy==1.26.4'}


def test_torch_of_numpy_1_gets_numpy_1(world: World) -> None:
    asked = world.setup('2.1.2')
    assert all('numpy<2' in one.kept for one in asked if 'install' in one.words and '--target' not in one.words)
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


@pytest.mark.parametrize(
    ('package', 'choices', 'message'),
    [
        ('torch-2.13.0+cpu', {'torch': '2.12.0'}, r'has torch 2\.13\.0\+cpu, but TORCH=2\.12\.0.*or TORCH=2\.13\.0'),
        ('onedl_mmengine-0.10.12', {}, r'OPENMMLAB=openmmlab, but .* has onedl-mmengine'),
        ('mmcv-2.1.0', {'openmmlab': 'onedl'}, r'OPENMMLAB=onedl, but .* has mmcv.*\.venv-onedl'),
    ],
)
def test_environments_that_do_not_fit_are_named(world: World, package: str, choices: dict, message: str) -> None:
    world.have(package)
    with pytest.raises(world.env.SetupError, match=message):
        world.setup(**choices)
    assert world.asked() == []


def test_a_folder_that_is_no_environment_of_this_python_is_left_alone(world: World) -> None:
    world.have('torch-2.13.0')
    world.site.parent.rename(world.site.parents[1] / 'python2.7')
    with pytest.raises(world.env.SetupError, match=f'no virtual environment of PYTHON .{TAG}'):
        world.setup()
    assert world.asked() == []


@pytest.mark.parametrize(
    ('lacks', 'message'),
    [('compiler', r'needs a C\+\+17 compiler.*apt install g\+\+ python3.*-dev'), ('headers', r'Python\.h')],
)
def test_what_compiling_lacks_is_named_before_anything_is_asked(
    world: World, monkeypatch: pytest.MonkeyPatch, lacks: str, message: str
) -> None:
    monkeypatch.setattr(world.env, 'check_compiler', world.check_compiler)
    if lacks == 'compiler':
        monkeypatch.setenv('CXX', 'no-such-c++')
    else:
        monkeypatch.setattr(sysconfig, 'get_paths', lambda: {'include': '/no-such-folder'})
        monkeypatch.setenv('CXX', str(world.home / 'c++'))
        (world.home / 'c++').write_text('#!/bin/sh\necho Python.h: No such file >&2\nexit 1\n')
        (world.home / 'c++').chmod(0o755)
    with pytest.raises(world.env.SetupError, match=f'(?s){message}'):
        world.setup()
    assert world.asked() == []


def test_a_number_of_jobs_that_is_none_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MAX_JOBS', '0')
    with pytest.raises(world.env.SetupError, match="MAX_JOBS='0'"):
        world.setup()
    assert world.asked() == []


def test_a_full_disk_is_named_before_anything_is_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(world.env.shutil, 'disk_usage', lambda path: usage(2 * 10**9))
    with pytest.raises(world.env.SetupError, match=r'VENV=.* needs 3 GB, .* has 2\.0 GB free'):
        world.setup()
    assert world.asked() == []


def test_a_python_that_cannot_bring_uv_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(world.env.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(world.env.SetupError, match=r'lacks ensurepip.*apt install python3-venv'):
        world.setup()


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


@pytest.mark.skipif(sys.platform != 'linux', reason='the indexes have wheels for Linux alone')
@pytest.mark.parametrize('openmmlab', ['openmmlab', 'onedl'])
def test_a_wheel_of_the_index_is_preferred(world: World, monkeypatch: pytest.MonkeyPatch, openmmlab: str) -> None:
    setup = world.env.Setup(world.venv, '2.13.0', openmmlab)
    assert setup.prebuilt('cu130') == ''  # out of reach
    folder = {'openmmlab': 'mmcv/dist/cu130/torch2.13.0', 'onedl': 'cu130-torch2130/simple/onedl-mmcv'}[openmmlab]
    page = world.home / 'index' / folder / 'index.html'
    page.parent.mkdir(parents=True)
    name = {'openmmlab': 'mmcv-2.1.0', 'onedl': 'onedl_mmcv-2.3.6'}[openmmlab]
    page.write_text(f'<a href="{name}-cp27-cp27-manylinux1_{os.uname().machine}.whl">for another Python</a>')
    assert setup.prebuilt('cu130') == ''
    page.write_text(f'<a href="{name}-{TAG}-{TAG}-manylinux1_{os.uname().machine}.whl">it</a>')
    assert setup.prebuilt('cu130') == page.as_uri()
    if openmmlab == 'openmmlab':
        (world.home / 'version.py').write_text(TORCH.format('+cu130', "'13.0'"))
        build = next(one.words for one in world.setup() if '--no-build-isolation' in one.words)
        assert build[build.index('-f') + 1] == page.as_uri()


@pytest.mark.parametrize(
    ('cuda', 'gpus', 'setting', 'key', 'forced'),
    [
        ('None', '', {}, 'cpu', '0'),
        ("'13.0'", '', {}, 'cpu', '0'),  # a node without a GPU; the trial names it
        ("'13.0'", '9.0 8.0 9.0', {}, '8.0_9.0', '1'),
        ("'13.0'", '8.0', {'TORCH_CUDA_ARCH_LIST': '8.0;9.0'}, '8.0_9.0', '1'),
        ("'13.0'", '', {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': '8.6+PTX'}, '8.6+PTX', '1'),
    ],
)
def test_operators_for_gpus_have_their_own_place_in_the_cache(
    world: World, monkeypatch: pytest.MonkeyPatch, cuda: str, gpus: str, setting: dict, key: str, forced: str
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    (world.home / 'version.py').write_text(TORCH.format('', cuda))
    (world.home / 'gpus').write_text(gpus)
    build = next(one.env for one in world.setup() if '--no-build-isolation' in one.words)
    assert build['FORCE_CUDA'] == forced and build.get('TORCH_CUDA_ARCH_LIST', 'cpu') in (key, key.replace('_', ';'))
    assert world.wheels() == [f'mmcv==2.1.0-torch-2.13.0-{TAG}-{sysconfig.get_platform()}-{key}']


def test_force_cuda_that_cannot_work_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('FORCE_CUDA', '1')
    with pytest.raises(world.env.SetupError, match='FORCE_CUDA=1 without a GPU; valid: with TORCH_CUDA_ARCH_LIST'):
        world.setup()
    assert world.asked() == []
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '9.0')
    with pytest.raises(world.env.SetupError, match=r'FORCE_CUDA=1, but torch 2\.13\.0 is a CPU build'):
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
