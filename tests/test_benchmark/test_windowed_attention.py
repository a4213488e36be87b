"""The alternatives to windowed attention that are timed compute the same."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / 'tools' / 'windowed_attention.py'


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location('windowed_attention', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in dict(GRID=(16, 16), WINDOW=4, HEADS=4, CHANNELS=16).items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kept', [256, 200, 20, 2])
def test_kernels_agree_as_far_as_rounding_goes(tool, dtype, kept):
    if dtype == torch.float16 and torch.__version__.startswith('2.1.'):
        pytest.skip('PyTorch 2.1 has no float16 attention on a CPU')
    calls = tool.contenders(kept, 'cpu', dtype)
    assert list(calls) == ['dense', 'windows', 'global', 'holes', 'masked']


def test_one_that_differs_is_found(tool, monkeypatch):
    monkeypatch.setattr(tool, 'within', lambda tensors, windows: tensors[2])
    with pytest.raises(AssertionError, match='not close'):
        tool.contenders(200, 'cpu', torch.bfloat16)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--blocks', '23'], r'--blocks=23; an integer from 0 to 22'),
        (['--rounds', '0'], r'--rounds=0; a positive integer'),
        (['--device', 'cuda:99'], r"--device='cuda:99': .* is expected"),
    ],
)
def test_wrong_settings(tool, monkeypatch, options, message):
    monkeypatch.setattr(tool, 'GRID', (96, 96))
    monkeypatch.setattr(sys, 'argv', ['windowed_attention.py', *options])
    with pytest.raises(SystemExit, match=message):
        tool.main()
