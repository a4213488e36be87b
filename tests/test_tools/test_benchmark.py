"""The benchmark's table and report."""

import json

import pytest

from .conftest import CONFIGS

SMALL = ['--arch', 'vit-tiny', '--img-size', '64', '--rate', '1', '--batch-size', '2', '--rounds', '2']


def test_report(run_tool, tmp_path, capsys):
    run_tool('benchmark', *SMALL, '--json', tmp_path / 'speed.json', '--plot', tmp_path / 'speed.png')
    report = json.loads((tmp_path / 'speed.json').read_text())
    variants = report['variants']
    assert list(variants) == ['dense', 'cropr', 'random'] and report['machine'] and report['torch']
    assert variants['dense']['tokens_per_block'] == [17] * 12
    assert variants['cropr']['tokens_per_block'][-2:] == [8, 17]
    assert variants['cropr']['gflops'] < variants['dense']['gflops']
    said = capsys.readouterr().out
    assert said.splitlines()[-2:] == [f'written: {tmp_path / f"speed.{kind}"}' for kind in ('json', 'png')]
    assert 'dense: 17 17' in said and 'cropr, random: 17 16' in said and 'pruning' in said
    assert (tmp_path / 'speed.png').stat().st_size > 1000


def test_without_rounds_operations_are_counted_alone(run_tool, tmp_path, capsys):
    run_tool('benchmark', *SMALL, '--rounds', '0', '--json', tmp_path / 'speed.json')
    row = json.loads((tmp_path / 'speed.json').read_text())['variants']['cropr']
    assert set(row) == {'gflops', 'flops_limit', 'tokens_pruned_ratio', 'tokens_per_block'} and row['flops_limit'] > 1
    assert 'images/s' not in capsys.readouterr().out


def test_the_beginning_of_the_curriculum_computes_what_the_dense_model_does(run_tool, tmp_path):
    options = ['--train', '--progress', '0', '--variants', 'dense', 'random']
    run_tool('benchmark', *SMALL, *options, '--json', tmp_path / 'speed.json')
    variants = json.loads((tmp_path / 'speed.json').read_text())['variants']
    for figure in ('gflops', 'tokens_per_block', 'tokens_pruned_ratio'):
        assert variants['random'][figure] == variants['dense'][figure]


@pytest.mark.parametrize(
    'name, options', [('fcn', ['--whole-model', '--train']), ('mask-rcnn', ['--whole-model', '--train']), ('fcn', [])]
)
def test_config(run_tool, tmp_path, name, options):
    """Whole models at inference: what the demo types, in test_pipeline.py."""
    pytest.importorskip('mmseg' if name == 'fcn' else 'mmdet')
    config = CONFIGS / f'{name}_cropr-vit_sample.py'
    classes = 9 if name == 'fcn' else 6
    run_tool('benchmark', '--config', config, '--batch-size', 1, '--rounds', 1, '--json', tmp_path / 'speed.json',
             '--num-classes', classes, '--variants', 'cropr', 'random', *options)  # fmt: skip
    report = json.loads((tmp_path / 'speed.json').read_text())
    assert report['img_size'] == [96, 96] and report['training'] == ('--train' in options)
    assert report['variants']['random']['tokens_per_block'] == [145, 128, 104, 88, 64, 48, 24, 145]
    assert ('milliseconds_of_parts' in report['variants']['cropr']) == ('--train' not in options)


def test_settings_of_a_config_change_on_the_command_line(run_tool, tmp_path):
    pytest.importorskip('mmseg')
    run_tool('benchmark', '--config', CONFIGS / 'fcn_cropr-vit_sample.py', '--batch-size', 1, '--rounds', 0,
             '--json', tmp_path / 'speed.json', '--cfg-options', 'model.backbone.pruning.rate=8')  # fmt: skip
    report = json.loads((tmp_path / 'speed.json').read_text())
    assert report['pruning']['rate'] == 8 and report['variants']['cropr']['tokens_per_block'][1] == 136


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--config', 'gone.py'], r"--config='gone.py': no such file"),
        (['--arch', 'vit-tinny'], r'vit-tinny.*vit-tiny'),
        (['--rate', '5'], r'pruning.rate=5'),
        (['--rounds', '-1'], r'--rounds=-1; an integer of 0 or more'),
        (['--variants', 'dense', 'best'], r'variant best; valid are dense, cropr'),
        (['--whole-model'], r'--whole-model: --config is needed'),
        (['--progress', '0.5'], r'--progress=0.5: .*--train is expected'),
        (['--train', '--progress', '1.5'], r'--progress=1.5; a number of 0 or more and at most 1'),
        (['--cuda-graph'], r'--cuda-graph: needs --device cuda'),
    ],
)
def test_wrong_settings(arguments, message, run_tool):
    with pytest.raises(SystemExit, match=message):
        run_tool('benchmark', *SMALL, *arguments)
