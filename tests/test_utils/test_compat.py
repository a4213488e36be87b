"""What differs between versions, on both sides of the difference."""

from types import SimpleNamespace

import pytest
import torch

from cropr_mm.utils import compat


@pytest.fixture(params=['here', 'before 2.4'])
def autocast_api(request, monkeypatch):
    if request.param == 'before 2.4' and hasattr(torch, 'get_autocast_dtype'):
        old = SimpleNamespace(
            is_autocast_enabled=lambda: torch.is_autocast_enabled('cuda'),
            is_autocast_cpu_enabled=lambda: torch.is_autocast_enabled('cpu'),
            get_autocast_gpu_dtype=lambda: torch.get_autocast_dtype('cuda'),
            get_autocast_cpu_dtype=lambda: torch.get_autocast_dtype('cpu'),
        )
        monkeypatch.setattr(compat, 'torch', old)


@pytest.mark.usefixtures('autocast_api')
def test_the_precision_of_autocast_is_that_of_its_device():
    assert compat.autocast_dtype('cpu') is None and compat.autocast_dtype('cuda') is None
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert compat.autocast_dtype('cpu') == torch.bfloat16
        assert compat.autocast_dtype('cuda') is None
        with torch.autocast('cpu', enabled=False):
            assert compat.autocast_dtype('cpu') is None


def test_compiled_code_knows_that_it_is():
    def twice_when_compiled(x):
        return x * 2 if compat.is_compiling() else x

    x = torch.ones(2)
    assert twice_when_compiled(x).tolist() == [1, 1]
    assert torch.compile(twice_when_compiled, backend='eager')(x).tolist() == [2, 2]


def test_events_have_a_beginning_in_every_version():
    assert compat.start_of(SimpleNamespace(start_ns=lambda: 5)) == compat.start_of(SimpleNamespace(start_us=lambda: 5))


def test_only_a_prefix_is_removed():
    assert compat.remove_prefix('module.a.module.', 'module.') == 'a.module.'
    assert compat.remove_prefix('a.module.b', 'module.') == 'a.module.b'


@pytest.mark.parametrize(
    'package, looked_for', [('mmsegmentation', 'mmsegmentation'), ('onedl-mmsegmentation', 'mmseg')]
)
def test_mmseg_is_found_under_whatever_name_it_was_installed(monkeypatch, package, looked_for):
    def distribution(name):
        if name != package:
            raise compat.PackageNotFoundError(name)

    known = dict(mmseg='mmsegmentation')
    monkeypatch.setattr(compat, 'MODULE2PACKAGE', known)
    monkeypatch.setattr(compat, 'distribution', distribution)
    compat.let_mmengine_find_mmseg()
    assert known == dict(mmseg=looked_for)
