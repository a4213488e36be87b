"""Set-up: what it decides before it builds anything, and the messages that it stops with."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


@pytest.fixture(scope='module')
def checks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        return importlib.import_module('setup_checks')


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A folder that looks like a virtual environment of this Python with torch and a compiled mmcv."""
    venv = tmp_path / 'venv'
    major, minor = sys.version_info[:2]
    site = venv / 'lib' / f'python{major}.{minor}' / 'site-packages'
    site.mkdir(parents=True)
    (venv / 'pyvenv.cfg').write_text(f'home = /usr/bin\nversion = {major}.{minor}.1\n')
    add_package(site, 'torch', '2.13.0+cpu')
    (site / 'torch').mkdir()
    (site / 'torch' / 'version.py').write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    return venv


def add_package(site: Path, name: str, version: str, url: str = '') -> None:
    info = site / f'{name}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    if url:
        (info / 'direct_url.json').write_text(json.dumps({'url': url}))


@pytest.mark.parametrize('python', [(3, 9), (3, 12)])
def test_accepts_the_oldest_and_newest_python(checks: ModuleType, python: tuple[int, int]) -> None:
    assert checks.check_choices('2.8.0', 'openmmlab', python, 'posix').mmcv == 'mmcv'


@pytest.mark.parametrize(
    ('choices', 'message'),
    [
        (('2.13.0', 'openmmlab', (3, 13), 'posix'), r'Python 3\.13; valid: 3\.9 to 3\.12'),
        (('2.13.0', 'openmmlab', (3, 8), 'posix'), r'Python 3\.8; valid: 3\.9 to 3\.12'),
        (('2.13.0', 'openmmlab', (3, 9), 'posix'), r'TORCH=2\.13\.0 needs Python 3\.10'),
        (('2.13', 'openmmlab', (3, 11), 'posix'), r"TORCH='2\.13'; valid: a full version"),
        (('1.13.1', 'openmmlab', (3, 11), 'posix'), r"TORCH='1\.13\.1'; valid: .* from 2\.4\.0"),
        (('2.13.0', 'onedk', (3, 11), 'posix'), r"OPENMMLAB='onedk'; valid: openmmlab or onedl"),
        (('2.8.0', 'onedl', (3, 9), 'posix'), r'OPENMMLAB=onedl needs Python 3\.10'),
        (('2.13.0', 'openmmlab', (3, 11), 'nt'), r'Linux and macOS'),
    ],
)
def test_choices_that_cannot_work_are_named(checks: ModuleType, choices: tuple, message: str) -> None:
    with pytest.raises(checks.SetupError, match=message):
        checks.check_choices(*choices)


def test_wheel_key_names_all_that_the_binary_depends_on(checks: ModuleType) -> None:
    stack = checks.STACKS['openmmlab']
    key = checks.wheel_key(stack, '2.13.0+cpu', (3, 11), 'linux-x86_64')
    assert key == 'mmcv-2.1.0-torch-2.13.0+cpu-cp311-linux_x86_64'
    others = {
        checks.wheel_key(stack, '2.13.0+cu130', (3, 11), 'linux-x86_64'),
        checks.wheel_key(stack, '2.13.0+cu130', (3, 11), 'linux-x86_64', cuda_ops=True),
        checks.wheel_key(stack, '2.13.0+cpu', (3, 12), 'linux-x86_64'),
        checks.wheel_key(stack, '2.13.0+cpu', (3, 11), 'macosx-11.0-arm64'),
        checks.wheel_key(checks.STACKS['onedl'], '2.13.0+cpu', (3, 11), 'linux-x86_64'),
    }
    assert len(others | {key}) == 6


def test_cache_root_follows_the_environment(checks: ModuleType, tmp_path: Path) -> None:
    own, xdg = str(tmp_path / 'own'), str(tmp_path / 'xdg')
    assert checks.cache_root({'CROPR_MM_CACHE': own, 'XDG_CACHE_HOME': xdg}) == tmp_path / 'own'
    assert checks.cache_root({'XDG_CACHE_HOME': xdg}) == tmp_path / 'xdg' / 'cropr_mm'
    assert checks.cache_root({}) == Path.home() / '.cache' / 'cropr_mm'


@pytest.mark.parametrize(
    ('wanted', 'installed', 'same'),
    [
        ('2.13.0', '2.13.0+cpu', True),
        ('2.13.0', '2.13.0', True),
        ('2.13.0+cpu', '2.13.0+cu130', False),
        ('2.1.0', '2.1.0.1', False),
        ('2.13.0', '2.12.0+cpu', False),
    ],
)
def test_torch_without_local_part_takes_any_build(checks: ModuleType, wanted: str, installed: str, same: bool) -> None:
    assert checks.torch_matches(wanted, installed) is same


def test_compile_jobs(checks: ModuleType) -> None:
    assert checks.compile_jobs({}, cores=8, memory=32 * 10**9) == 8
    assert checks.compile_jobs({}, cores=8, memory=4 * 10**9) == 2
    assert checks.compile_jobs({}, cores=8, memory=10**9) == 1
    assert checks.compile_jobs({'MAX_JOBS': '3'}, cores=8, memory=10**9) == 3
    with pytest.raises(checks.SetupError, match="MAX_JOBS='0'"):
        checks.compile_jobs({'MAX_JOBS': '0'}, cores=8, memory=10**9)


def test_installed_reads_an_environment_from_its_files(checks: ModuleType, venv: Path) -> None:
    site = checks.Installed(venv).site
    url = 'file:///home/a%20b/wheels/mmcv-2.1.0-torch-2.13.0%2Bcpu-cp311-linux_x86_64/mmcv-2.1.0-cp311.whl'
    add_package(site, 'mmcv', '2.1.0', url)
    there = checks.Installed(venv)
    assert (there.torch, there.cuda) == ('2.13.0+cpu', None)
    assert there.mmcv_key() == 'mmcv-2.1.0-torch-2.13.0+cpu-cp311-linux_x86_64'
    (site / 'torch' / 'version.py').write_text("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert checks.Installed(venv).cuda == '13.0'


def test_empty_and_missing_environments_have_nothing(checks: ModuleType, tmp_path: Path) -> None:
    there = checks.Installed(tmp_path / 'missing')
    assert (there.torch, there.mmcv_key(), there.versions) == (None, None, {})


def check(checks: ModuleType, venv: Path, **changed: object) -> None:
    wanted = {'torch': '2.13.0', 'openmmlab': 'openmmlab', 'python': sys.version_info[:2], **changed}
    checks.check_environment(venv, checks.Installed(venv), **wanted)


def test_a_fitting_environment_passes(checks: ModuleType, venv: Path) -> None:
    check(checks, venv)
    check(checks, venv.parent / 'missing')


@pytest.mark.parametrize(
    ('package', 'changed', 'message'),
    [
        (None, {'torch': '2.12.0'}, r'has torch 2\.13\.0\+cpu, but TORCH=2\.12\.0.*TORCH=2\.13\.0, or'),
        (None, {'python': (3, 8)}, r'was made with Python 3\.\d+, PYTHON is 3\.8'),
        (('onedl-mmengine', '0.10.12'), {}, r'OPENMMLAB=openmmlab, but .* has onedl-mmengine of onedl'),
        (('mmcv', '2.1.0'), {'openmmlab': 'onedl'}, r'OPENMMLAB=onedl, but .* has mmcv of openmmlab.*\.venv-onedl'),
    ],
)
def test_environments_that_do_not_fit_are_named(
    checks: ModuleType, venv: Path, package: tuple[str, str] | None, changed: dict, message: str
) -> None:
    if package:
        add_package(checks.Installed(venv).site, *package)
    with pytest.raises(checks.SetupError, match=message):
        check(checks, venv, **changed)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere CPU builds carry no mark')
def test_a_cuda_torchvision_beside_a_cpu_torch_is_named(checks: ModuleType, venv: Path) -> None:
    site = checks.Installed(venv).site
    add_package(site, 'torchvision', '0.28.0+cpu')
    check(checks, venv)
    (site / 'torchvision-0.28.0+cpu.dist-info' / 'METADATA').write_text('Name: torchvision\nVersion: 0.28.0\n')
    with pytest.raises(checks.SetupError, match=r'torchvision 0\.28\.0 next to torch 2\.13\.0\+cpu.*pip uninstall'):
        check(checks, venv)


def test_a_folder_that_is_no_environment_is_left_alone(checks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(checks.SetupError, match=r'no virtual environment'):
        check(checks, tmp_path)


def test_a_missing_compiler_is_named(checks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(checks.SetupError, match=r"CXX='no-such-c\+\+'.*apt install g\+\+"):
        checks.check_compiler({'CXX': 'no-such-c++', 'PATH': str(tmp_path)})
    with pytest.raises(checks.SetupError, match=r'no C\+\+ compiler'):
        checks.check_compiler({'PATH': str(tmp_path)})


def fake_compiler(folder: Path, exit_status: int) -> dict[str, str]:
    compiler = folder / 'fake-c++'
    compiler.write_text(f'#!/bin/sh\necho too old >&2\nexit {exit_status}\n')
    compiler.chmod(0o755)
    return {'CXX': str(compiler), 'PATH': '/usr/bin:/bin'}


def test_missing_headers_are_named(checks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(checks.SetupError, match=r'Python\.h is missing'):
        checks.check_compiler(fake_compiler(tmp_path, 0), include=str(tmp_path))


def test_a_compiler_that_cannot_compile_is_named(checks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / 'Python.h').touch()
    checks.check_compiler(fake_compiler(tmp_path, 0), include=str(tmp_path))
    with pytest.raises(checks.SetupError, match=r'cannot compile C\+\+17:\ntoo old'):
        checks.check_compiler(fake_compiler(tmp_path, 1), include=str(tmp_path))


def test_a_full_disk_is_named(checks: ModuleType, tmp_path: Path) -> None:
    checks.check_disk(tmp_path / 'not' / 'yet', 0, 'VENV=x')
    with pytest.raises(checks.SetupError, match=r'VENV=x needs 1e\+09 GB, .* GB free'):
        checks.check_disk(tmp_path / 'not' / 'yet', 1e9, 'VENV=x')


def test_a_compiled_wheel_goes_to_the_cache_and_is_compiled_once(
    checks: ModuleType, venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CROPR_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.syspath_prepend(str(TOOLS))
    setup_env = importlib.import_module('setup_env')
    compiled = []

    class Compiler(setup_env.Setup):
        def compile_mmcv(self, build: Path, lock: int) -> None:
            compiled.append(build)
            (build / 'out').mkdir(parents=True)
            (build / 'out' / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').write_bytes(b'wheel')

    for _ in range(2):
        wheel = Compiler(venv, '2.13.0', 'openmmlab').mmcv_wheel()
        assert wheel is not None and wheel.read_bytes() == b'wheel'
        assert wheel.parent == tmp_path / 'cache' / 'wheels' / compiled[0].name
    assert len(compiled) == 1
    assert not compiled[0].exists()


@pytest.fixture
def parity_setup(checks: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[type, list]:
    """Set-up whose pip only makes the folder, and what it was asked for."""
    monkeypatch.syspath_prepend(str(TOOLS))
    setup_env = importlib.import_module('setup_env')
    calls: list[tuple] = []

    class NoPip(setup_env.Setup):
        def pip(self, what: str, *arguments: object) -> None:
            calls.append(arguments)
            target = Path(str(arguments[arguments.index('--target') + 1]))
            target.mkdir()
            (target / f'call_{len(calls)}').touch()

    return NoPip, calls


def test_what_tests_compare_with_is_installed_once_without_its_dependencies(
    parity_setup: tuple[type, list], venv: Path
) -> None:
    setup, calls = parity_setup
    for _ in range(2):
        setup(venv, '2.13.0', 'openmmlab').install_parity()
    assert len(calls) == 1 and '--no-deps' in calls[0]
    packages = {str(argument).split('==')[0] for argument in calls[0] if '==' in str(argument)}
    assert packages >= {'timm', 'mmpretrain', 'torchvision'} and not packages & {'torch', 'mmcv', 'mmengine'}
    assert 'torchvision==0.28.*' in calls[0]  # the one for torch 2.13


@pytest.mark.parametrize('mark', ['timm==1.0.31', '', None], ids=['of an older list', 'empty', 'none: cut short'])
def test_an_old_folder_is_replaced_as_a_whole(parity_setup: tuple[type, list], venv: Path, mark: str | None) -> None:
    setup, _ = parity_setup
    (venv / 'parity').mkdir()
    (venv / 'parity' / 'stale.py').touch()
    if mark is not None:
        (venv / 'parity' / 'installed.txt').write_text(mark)
    setup(venv, '2.13.0', 'openmmlab').install_parity()
    assert sorted(file.name for file in (venv / 'parity').iterdir()) == ['call_1', 'installed.txt']
    assert not (venv / 'parity.new').exists()


def test_another_torch_brings_its_own_torchvision(parity_setup: tuple[type, list], venv: Path) -> None:
    setup, calls = parity_setup
    setup(venv, '2.13.0', 'openmmlab').install_parity()
    version = next(venv.glob('lib/*/site-packages/torch/version.py'))
    version.write_text(version.read_text().replace('2.13.0', '2.12.1'))
    setup(venv, '2.12.1', 'openmmlab').install_parity()
    assert len(calls) == 2 and 'torchvision==0.27.*' in calls[1]
