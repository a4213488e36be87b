"""What is newer than Python 3.8 and PyTorch 2.1 is found before someone with these finds it."""

import floor
import pytest

LISTED = set(floor.LIST.read_text(encoding='utf-8').splitlines())


def test_the_sources_keep_to_the_floor(capsys):
    assert floor.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    'source, problem',
    [
        ('import torch\ntorch.no_such_function()', 'torch.no_such_function'),
        ('import torch\ntorch.compiler.is_compiling()', 'torch.compiler.is_compiling'),
        ('from torch import nn\nclass Norm(nn.RMSNorm): pass', 'torch.nn.RMSNorm'),
        ('from torch.nn.attention import SDPBackend', 'torch.nn.attention.SDPBackend'),
        ('def f():\n    from torch.nn.attention.flex_attention import flex_attention', 'torch.nn.attention.flex_att'),
        ('import torch\ntorch.bmm(a, b, out_dtype=dtype)', 'torch.bmm out_dtype'),
        ('State = dict[str, int]', 'dict[…]'),
        ('from collections.abc import Callable\nRun = Callable[..., int]', 'collections.abc.Callable[…]'),
        ("name.removeprefix('module.')", '.removeprefix()'),
    ],
)
def test_a_newer_use_is_named(tmp_path, source, problem):
    file = tmp_path / 'new.py'
    file.write_text(source)
    assert any(f'{file}:{1 + source.count(chr(10))}: {problem}' in found for found in floor.problems(file, LISTED))


def test_a_method_that_only_newer_tensors_have_is_named(tmp_path, monkeypatch):
    file = tmp_path / 'new.py'
    file.write_text('x.from_the_future()')
    assert not list(floor.problems(file, LISTED))  # of something that is no tensor
    monkeypatch.setattr(floor.torch.Tensor, 'from_the_future', None, raising=False)
    (found,) = floor.problems(file, LISTED)
    assert f'{file}:1: .from_the_future' in found


@pytest.mark.parametrize(
    'source',
    [
        'import torch\ntorch.cat([a], dim=1).flatten(1)',
        'import torch\ntorch.bmm(a, b, out_dtype=torch.float32)  # since PyTorch 2.8',
        'def f(x: dict[str, int] = {}) -> list[int]:\n    y: set[int] = set()',
        'numbers.index(3)',
    ],
)
def test_what_the_floor_has_passes(tmp_path, source):
    file = tmp_path / 'old.py'
    file.write_text(source)
    assert not list(floor.problems(file, LISTED))
