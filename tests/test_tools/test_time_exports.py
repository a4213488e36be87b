"""Timing of exported files."""

import json

import pytest
import torch
from mmengine.utils import digit_version
from torch import nn


class Halves(nn.Module):
    def forward(self, images):
        return [images / 2]


@pytest.fixture
def files(tmp_path):
    if digit_version(torch.__version__) < digit_version('2.9'):
        pytest.skip('needs PyTorch 2.9')
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    batch = torch.export.Dim('batch', min=1)
    program = torch.export.export(Halves(), (torch.zeros(2, 3, 8, 12),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / 'model.pt2')
    torch.onnx.export(program, input_names=['images'], dynamo=True, verbose=False).save(tmp_path / 'model.onnx')
    return [tmp_path / 'model.onnx', tmp_path / 'model.pt2']


def test_files_are_timed_against_the_first(files, run_tool, tmp_path, capsys, monkeypatch):
    from cropr_mm.export import load_export

    for file in files:
        run, size = load_export(file)
        images = torch.rand(3, 3, 8, 12)
        assert size == (8, 12) and torch.equal(run(images)[0], images / 2)
    monkeypatch.setattr('cropr_mm.benchmark.throughput.seconds_of', lambda call, repeats, device: (call(), 0.5)[1])
    run_tool('time_exports', *files, '--batch-size', 3, '--rounds', 2, '--json', tmp_path / 'times.json')
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[1:-1]] == [['500.0', '6.00', '1.00', '0.0%']] * 2
    assert lines[-1] == f'written: {tmp_path / "times.json"}'
    report = json.loads((tmp_path / 'times.json').read_text())
    assert report['batch_size'] == 3 and report['files'][str(files[1])]['size'] == [8, 12]


def test_files_for_images_of_any_size_are_timed_at_the_one_that_is_asked_for(files, run_tool, tmp_path, monkeypatch):
    sizes = {0: torch.export.Dim('batch', min=1), 2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    program = torch.export.export(Halves(), (torch.zeros(2, 3, 8, 12),), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / 'open.pt2')
    torch.onnx.export(program, input_names=['images'], dynamo=True, verbose=False).save(tmp_path / 'open.onnx')
    monkeypatch.setattr('cropr_mm.benchmark.throughput.seconds_of', lambda call, repeats, device: (call(), 0.5)[1])
    given = [tmp_path / 'open.onnx', tmp_path / 'open.pt2', files[0], '--rounds', 2]
    run_tool('time_exports', *given, '--size', 8, 12, '--json', tmp_path / 'times.json')
    report = json.loads((tmp_path / 'times.json').read_text())
    assert [figures['size'] for figures in report['files'].values()] == [[8, 12]] * 3
    with pytest.raises(SystemExit, match=r'open\.onnx takes images of any size; say with --size H W'):
        run_tool('time_exports', *given)
    with pytest.raises(SystemExit, match=r'--size=16 12: .*model\.onnx takes images of 8 × 12'):
        run_tool('time_exports', *given, '--size', 16, 12)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.onnx'], r'missing\.onnx: no such file'),
        ([__file__], r'\.pt2'),
        ([__file__, '--rounds', 0], '--rounds=0'),
        ([__file__, '--batch-size', 0], '--batch-size=0'),
        ([__file__, '--threads', -1], '--threads=-1'),
        ([__file__, '--size', 0, 8], '--size=0'),
    ],
    ids=str,
)
def test_what_cannot_be_timed_is_named(arguments, message, run_tool):
    with pytest.raises(SystemExit, match=message):
        run_tool('time_exports', *arguments)
