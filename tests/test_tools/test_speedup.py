"""A finished dense model, made faster on the user's images."""

import csv
import json
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from parity import import_mmpretrain

from cropr_mm.cli.evaluation import spread, use_few_images, validate_as_test
from cropr_mm.cli.model import build_model

from .conftest import CONFIGS, ROOT
from .test_rates_and_deploy import QUICK, save_checkpoint, test_metrics

CONFIG = CONFIGS / 'fcn_dense-vit_sample.py'
LOADERS = [option.replace('test', loader) for option in QUICK for loader in ('train', 'val', 'test')]
OPTIONS = ['--rounds', 1, '--batch-size', 1, '--work-dir', 'work', '--cfg-options', *LOADERS]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    pytest.importorskip('mmseg')
    return save_checkpoint(tmp_path_factory.mktemp('dense') / 'iter_2.pth', CONFIG)


def options_for(pruning):
    flat = {'pruner.type': pruning['pruner']['type'], 'target_ratio': pruning['target_ratio']}
    flat.update({'blocks': str(pruning['blocks']).replace(' ', '')} if 'blocks' in pruning else {})
    return [f'model.backbone.pruning.{key}={value}' for key, value in flat.items()]


def test_rows_are_what_the_printed_lines_give(run_tool, data_folder, checkpoint, capsys):
    run_tool('speedup', CONFIG, checkpoint, '--reducers', 'tome', '--rates', 0.6, '--stages', 3, '--distil', 0.6,
             '--distil-iters', 2, *OPTIONS)  # fmt: skip
    said = capsys.readouterr().out
    work = data_folder / 'work'
    files = [f'speedup.{kind}' for kind in ('json', 'csv', 'png')] + ['distilled-tome-0.6.pth']
    assert said.splitlines()[-4:] == [f'written: work/{file}' for file in files]
    report = json.loads((work / 'speedup.json').read_text())
    with open(work / 'speedup.csv') as file:
        rows = list(csv.DictReader(file))
    names = ['dense', 'tome, every block', 'tome, 3 stages']
    assert [row['series'] for row in rows][:3] == names and len(rows) == 4
    assert [row['series'] for row in report['measured']] == [row['series'] for row in rows]
    assert report['images'] == 6 and report['metric'] == 'mIoU' and report['measured'][0]['points_lost'] == 0
    assert (work / 'speedup.png').read_bytes().startswith(b'\x89PNG')
    assert not [path for path in work.iterdir() if 'partial' in path.name]

    dense, every, stages, distilled = report['measured']
    assert distilled['series'] in (f'{names[1]}, distilled', f'{names[2]}, distilled')
    assert distilled['checkpoint'] == 'work/distilled-tome-0.6.pth'
    assert stages['pruning'] == dict(pruner=dict(type='ToMeReducer'), target_ratio=0.6, blocks=[1, 3, 5])
    for row, folder in ((dense, 'd'), (every, 'e'), (stages, 's'), (distilled, 'k')):
        options = options_for(row['pruning']) if row['pruning'] else []
        metrics = test_metrics(run_tool, data_folder / folder, row['checkpoint'], *options, config=CONFIG)
        assert row['metrics']['mIoU'] == pytest.approx(metrics['mIoU'], rel=1e-4), row['series']
        assert row['points_lost'] == pytest.approx(dense['metrics']['mIoU'] - metrics['mIoU'], abs=1e-3)

    for budget in ('0.5', '1', '2'):
        fit = [r for r in report['measured'] if r['points_lost'] <= float(budget) and r['speedup'] > 1]
        best = max(fit, key=lambda row: row['speedup'], default=None)
        assert report['best_within'].get(budget) == best
        found = re.search(rf'At most {budget} points of mIoU lost: (.*)', said)[1]
        assert found.startswith(f'{best["speedup"]:.2f}× with {best["series"]}' if best else 'nothing is faster')
    for line in re.findall(r'^  (model = .*)', said, re.M):  # what is printed builds, and on the dense config
        cfg = Config.fromfile(str(CONFIG))
        cfg.merge_from_dict(Config.fromstring(line, '.py').to_dict())
        assert build_model(cfg).backbone.schedule.rate > 0


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--reducers', 'nobody'], r'--reducers nobody: of random, variance'),
        (['--rates', '1.5'], r'--rates=1.5; a number above 0 and below 1'),
        (['--distil', '0'], r'--distil=0.0; a number above 0'),
        (['--stages', '9'], r'--stages=9; an integer from 1 to 7'),
        (['--images', '0'], r'--images=0'),
        (['--distil-lr', '0'], r'--distil-lr=0.0; a number above 0'),
        (['--distil-reducers', 'tome'], r'--distil-reducers tome: of variance is expected'),
        (['--distil-iters', '0'], r'--distil-iters=0'),
        (['--launcher', 'pytorch'], r'--launcher pytorch'),
        (['--metric', 'bbox_mAP'], r"metric 'bbox_mAP': the evaluator gives aAcc, mIoU"),
        (['--retrofitted', 'gone.pth'], r"checkpoint='gone.pth': no such file"),
        (['--rates', '0.999'], r'no reducer fits the model'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run_tool, data_folder, checkpoint, arguments, message):
    with pytest.raises(SystemExit, match=rf'^speedup.py: error: .*{message}'):
        run_tool('speedup', CONFIG, checkpoint, '--reducers', 'variance', '--rates', 0.5, '--images', 1, *arguments,
                 *OPTIONS)  # fmt: skip
    assert not list(data_folder.glob('work/speedup*'))


def test_it_needs_the_checkpoint_of_a_dense_model(run_tool, data_folder, checkpoint):
    pruned = save_checkpoint(data_folder / 'pruned.pth', CONFIGS / 'fcn_cropr-vit_sample.py')
    for config, file, message in (
        (CONFIG, 'gone.pth', r"checkpoint='gone.pth': no such file"),
        (CONFIG, pruned, r'pruned.pth has pruners; that of a dense model is expected'),
        (CONFIGS / 'fcn_cropr-vit_sample.py', pruned, r'pruned.pth has pruners'),
        (CONFIG, pruned.with_name('other.pth'), r'other.pth does not fit .*missing: backbone.cls_token'),
    ):
        torch.save(dict(state_dict=dict(a=torch.ones(1))), data_folder / 'other.pth')
        with pytest.raises(SystemExit, match=rf'^speedup.py: error: .*{message}'):
            run_tool('speedup', config, file, *OPTIONS)


def test_a_config_with_pruning_and_no_trained_pruners(run_tool, data_folder, checkpoint, capsys):
    """Its own pruner plays no part; what is printed replaces it."""
    run_tool('speedup', CONFIGS / 'fcn_cropr-vit_sample.py', checkpoint, '--reducers', 'variance', '--rates', 0.86,
             '--stages', '--images', 2, *OPTIONS)  # fmt: skip
    assert 'variance, every block' in capsys.readouterr().out
    report = json.loads((data_folder / 'work' / 'speedup.json').read_text())
    assert [row['rate'] for row in report['measured']] == [0, 0.86] and report['images'] == 2


# --- a few images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('total, count, rows', [(10, 3, [0, 3, 6]), (4, 4, [0, 1, 2, 3]), (2, 9, [0, 1])])
def test_rows_are_spread_evenly(total, count, rows):
    assert list(spread(total, count)) == rows


class Numbers(BaseDataset):
    def load_data_list(self):
        return [dict(img_id=100 + i) for i in range(10)]


def test_metrics_of_coco_know_the_images():
    from mmengine.runner import Runner

    dataset = Numbers(metainfo=dict(classes=('a', 'b')))
    metrics = [SimpleNamespace(img_ids=None), SimpleNamespace()]
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), evaluator=SimpleNamespace(metrics=metrics))
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=None)
    runner = SimpleNamespace(
        test_loop=loop, cfg=Config(dict(test_dataloader=loader)), build_dataloader=Runner.build_dataloader
    )
    assert use_few_images(runner, 4) == 4
    ids = [sample['img_id'] for sample in map(loop.dataloader.dataset.__getitem__, range(4))]
    assert ids == metrics[0].img_ids == [100, 102, 105, 107] and not hasattr(metrics[1], 'img_ids')
    assert loop.dataloader.dataset.metainfo['classes'] == ('a', 'b')


def test_the_validation_set_comes_first():
    both = dict(val_dataloader=dict(a=1), val_evaluator=dict(b=1), test_dataloader=dict(a=2), test_evaluator=dict(b=2))
    cfg = Config(dict(both))
    validate_as_test(cfg)
    assert cfg.test_dataloader == dict(a=1) and cfg.test_evaluator == dict(b=1) and cfg.test_cfg.type == 'TestLoop'
    cfg = Config({**both, 'val_dataloader': None})
    validate_as_test(cfg)
    assert cfg.test_dataloader == dict(a=2)
    with pytest.raises(ValueError, match='neither val_dataloader'):
        validate_as_test(Config(dict(a=1)))


# --- the other libraries --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_detectors(run_tool, data_folder):
    pytest.importorskip('mmdet')
    config = CONFIGS / 'mask-rcnn_dense-vit_sample.py'
    file = save_checkpoint(data_folder / 'det.pth', config)
    run_tool('speedup', config, file, '--reducers', 'tome', '--rates', 0.5, '--stages', '--images', 2, '--distil', 0.5,
             '--distil-iters', 1, *OPTIONS, 'train_dataloader.batch_size=1')  # fmt: skip
    report = json.loads((data_folder / 'work' / 'speedup.json').read_text())
    assert report['metric'] == 'coco/bbox_mAP' and len(report['measured']) == 3
    trained = torch.load(report['measured'][2]['checkpoint'])['state_dict']
    dense = torch.load(file)['state_dict']
    changed = {name for name, value in dense.items() if not torch.equal(value, trained[name])}
    assert changed and all(name.startswith(('backbone.', 'neck.')) for name in changed)  # what makes the maps


@pytest.mark.slow
def test_classifiers(run_tool, tmp_path, monkeypatch):
    import_mmpretrain()
    monkeypatch.chdir(tmp_path)
    config = ROOT / 'configs' / 'sample_cls' / 'linear_cropr-vit_crops.py'
    content = torch.load(save_checkpoint(tmp_path / 'pruned.pth', config))
    content['state_dict'] = {k: v for k, v in content['state_dict'].items() if 'pruners' not in k}
    torch.save(content, tmp_path / 'dense.pth')
    few = [f'{key}_dataloader.dataset.count=6' for key in ('train', 'val', 'test')]
    run_tool('speedup', config, 'dense.pth', '--reducers', 'tome', '--rates', 0.5, '--stages', '--images', 4,
             '--distil', 0.5, '--distil-iters', 1, *OPTIONS, *few)  # fmt: skip
    report = json.loads((tmp_path / 'work' / 'speedup.json').read_text())
    assert report['metric'] == 'accuracy/top1' and report['images'] == 4 and len(report['measured']) == 3
