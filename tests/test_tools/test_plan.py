"""The planner's command line, with costs that do not depend on the machine."""

import json

import pytest
from mmengine.config import Config

from cropr_mm.benchmark import planner
from cropr_mm.benchmark.throughput import Timing
from cropr_mm.cli.model import build_model

from .conftest import CONFIGS

CONFIG = CONFIGS / 'fcn_cropr-vit_sample.py'


@pytest.fixture
def costs(monkeypatch):
    """A block saves in proportion to the tokens, of 80 ms that the dense model takes, and pruners cost 1 ms."""

    def measure(dense, pruned, batch, setting):
        shape = planner.shape_of(pruned, batch['inputs'])
        return planner.Costs(shape, 0.08, tuple(0.01 * (1 - share) for share in planner.SHARES), (0.001, 0.0))

    def time(dense, pruned, schedules, batch, setting):
        return [Timing(1, (0.08,)), *(Timing(1, (0.05,)) for _ in schedules)]

    monkeypatch.setattr(planner, 'measure_costs', measure)
    monkeypatch.setattr(planner, 'time_schedules', time)


@pytest.mark.parametrize('target', [('--target-speedup', 1.6), ('--latency-ms', 50)], ids=lambda target: target[0])
def test_the_plan_is_printed_and_written(target, costs, run_tool, data_folder, capsys):
    run_tool('plan', '--config', CONFIG, *target, '--out', 'planned.py', '--json', 'plan.json', '--batch-size', 1)
    text = capsys.readouterr().out
    assert text.splitlines()[-2:] == ['written: planned.py', 'written: plan.json']
    assert 'measured 1.60×, 50 ms' in text and 'dense: 80 ms, to reach: 50 ms' in text
    report = json.loads((data_folder / 'plan.json').read_text())
    keep = {int(block): share for block, share in report['keep'].items()}
    assert f'keep={keep}' in text and report['measured'] == pytest.approx(1.6)
    assert 1.6 <= report['predicted'] < 1.7
    cfg = Config.fromfile('planned.py')
    assert cfg.model.backbone.pruning.keep == keep and 'rate' not in cfg.model.backbone.pruning
    assert cfg.model.backbone.init_cfg == Config.fromfile(str(CONFIG)).model.backbone.init_cfg
    cfg.model.backbone.init_cfg = None
    backbone = build_model(cfg).backbone
    schedule = backbone.schedule
    tokens = schedule.tokens_per_block(backbone.depth, backbone.grid, backbone.num_prefix_tokens)
    assert tokens == report['tokens_per_block']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--target-speedup', 40], r'no plan reaches that: with 10% of the tokens kept the most is .*×, after blocks'),
        (['--latency-ms', 90], 'do not prune for speed'),
        (['--target-speedup', 0.9], r'--target-speedup=0\.9'),
        (['--latency-ms', 0], r'--latency-ms=0'),
        (['--target-speedup', 1.5, '--rounds', 0], '--rounds=0'),
        (['--target-speedup', 1.5, '--threads', 0], '--threads=0'),
        (['--target-speedup', 1.5, '--device', 'cuda:77'], '--device'),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(arguments, message, costs, run_tool, data_folder):
    with pytest.raises(SystemExit, match=message):
        run_tool('plan', '--config', CONFIG, *arguments)


def test_dear_pruners_end_in_the_advice_not_to_prune(monkeypatch, run_tool, data_folder):
    def measure(dense, pruned, batch, setting):
        shape = planner.shape_of(pruned, batch['inputs'])
        return planner.Costs(shape, 0.08, (0.001,) * len(planner.SHARES), (0.05, 0.0))

    monkeypatch.setattr(planner, 'measure_costs', measure)
    with pytest.raises(SystemExit, match=r'the most is 0\.\d\d×, after blocks .*: do not prune here'):
        run_tool('plan', '--config', CONFIG, '--target-speedup', 1.1)


@pytest.mark.parametrize('config', ['fcn_dense-vit_sample.py', None])
def test_a_plan_is_written_into_a_config_that_prunes(config, run_tool, data_folder):
    given = ['--config', CONFIGS / config] if config else []
    with pytest.raises(SystemExit, match=r'a --config with model\.backbone\.pruning is expected'):
        run_tool('plan', *given, '--target-speedup', 1.5, '--out', 'planned.py')
    assert not list(data_folder.glob('*planned*'))
