"""The benchmark's table and report."""

import json

import pytest

from .conftest import CONFIGS

SMALL = ['--arch', 'vit-tiny', '--img-size', '64', '--rate', '1', '--batch-size', '2', '--rounds', '2']


def test_report(run_tool, tmp_path, capsys):
    run_tool('benchmark', *SMALL, '--json', tmp_path / 'speed.json')
    report = json.loads((tmp_path / 'speed.json').read_text())
    variants = report['variants']
    assert list(variants) == ['dense', 'cropr', 'random']
    assert variants['dense']['ratio_to_dense'] == 1
    assert variants['dense']['tokens_per_block'] == [17] * 12
    assert variants['cropr']['tokens_per_block'][-2:] == [8, 17]
    assert variants['cropr']['gflops'] < variants['dense']['gflops']
    limit = variants['dense']['gflops'] / variants['cropr']['gflops']
    assert variants['cropr']['share_of_flops_limit'] == pytest.approx(variants['cropr']['ratio_to_dense'] / limit)
    assert 'tokens per block, pruned: 17' in capsys.readouterr().out


def test_config(run_tool, tmp_path):
    pytest.importorskip('mmseg')
    config = CONFIGS / 'fcn_cropr-vit_sample.py'
    run_tool('benchmark', '--config', config, '--batch-size', 1, '--rounds', 1, '--json', tmp_path / 'speed.json')
    report = json.loads((tmp_path / 'speed.json').read_text())
    assert report['img_size'] == [96, 96]
    assert report['variants']['random']['tokens_per_block'] == [145, 128, 104, 88, 64, 48, 24, 145]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--config', 'gone.py'], r"--config='gone.py': no such file"),
        (['--arch', 'vit-tinny'], r'vit-tinny.*vit-tiny'),
        (['--rate', '5'], r'pruning.rate=5'),
        (['--rounds', '0'], r'rounds=0'),
    ],
)
def test_wrong_settings(arguments, message, run_tool):
    with pytest.raises(SystemExit, match=message):
        run_tool('benchmark', *SMALL, *arguments)
