"""The comparison's methods, table and plan; the runs themselves are those of tools/train.py."""

import importlib.util
import json
import subprocess
import sys
import threading

import pytest
import torch
from filelock import FileLock
from mmengine.config import Config

from cropr_mm.analysis.methods import CHANGES, GROUPS, PRUNERS, apply_method, needs_label_maps, own_method, schedule_of
from cropr_mm.benchmark.throughput import Timing
from cropr_mm.cli.model import build_model

from .conftest import CONFIGS, ROOT

spec = importlib.util.spec_from_file_location('compare', ROOT / 'tools' / 'compare.py')
compare = sys.modules['compare'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

HEADS = {'sample-seg': 'fcn', 'sample-det': 'mask-rcnn'}
FILES = sorted(CONFIGS.glob('*.py'))


def arguments(data='sample-seg', *more):
    return compare.parse_args([data, *map(str, more)])


def result(method, seed, value, kept, **scores):
    routing = None if kept is None else dict(object=[1.0, kept, 1.0], background=[1.0, kept / 2, 1.0])
    if kept is not None:
        routing['classes'] = dict(sign=[1.0, kept / 4, 1.0])
    return dict(method=method, seed=seed, mIoU=value, routing=routing, classes=scores, object_IoU=value / 2)


def test_the_table_by_hand():
    runs = [('dense', 80, None), ('oracle', 70, 1.0), ('random', 50, 0.2), ('cropr', 65, 0.9)]
    results = [result(m, seed, value + seed, kept) for m, value, kept in runs for seed in (0, 2, 1)]
    assert compare.table(True, results).splitlines() == [
        '| pruner | mIoU | headroom recovered | object IoU | object tokens kept | background kept |',
        '| --- | --- | --- | --- | --- | --- |',
        '| dense | 81.0 (80.0–82.0) | 150 % | 40.5 | 100 % | 100 % |',
        '| oracle | 71.0 (70.0–72.0) | 100 % | 35.5 | 100 % | 50 % |',
        '| random | 51.0 (50.0–52.0) | 0 % | 25.5 | 20 % | 10 % |',
        '| cropr | 66.0 (65.0–67.0) | 75 % | 33.0 | 90 % | 45 % |',
    ]


def test_without_the_scale_there_is_no_headroom():
    assert '| – |' in compare.table(True, [result('cropr', 0, 65.0, 0.9)])


def test_the_table_of_classes_by_hand():
    results = [result('dense', 0, 80, None, sign=40, road=90), result('cropr', 0, 70, 0.8, sign=30, road=90)]
    assert compare.class_table(results).splitlines() == [
        '| class | dense | cropr |',
        '| --- | --- | --- |',
        '| sign | 40.0 | 30.0 (20 %) |',
        '| road | 90.0 | 90.0 |',
    ]


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_methods_are_what_their_config_files_say(file):
    head, name = file.stem.split('_')[:2]
    data = next(d for d, h in HEADS.items() if h == head)
    pytest.importorskip('mmseg' if head == 'fcn' else 'mmdet')
    mine = compare.config_of(arguments(data), name.replace('-vit', '')).to_dict()
    theirs = Config.fromfile(str(file)).to_dict()
    for key in ('model', 'custom_hooks', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'train_dataloader'):
        assert mine.get(key) == theirs.get(key), key


@pytest.fixture(scope='module')
def base():
    return {data: Config.fromfile(str(CONFIGS / f'{head}_cropr-vit_sample.py')) for data, head in HEADS.items()}


def change(base, data, method):
    cfg = Config(base[data].to_dict())
    apply_method(cfg, method)
    return cfg


@pytest.mark.parametrize('data, library', [('sample-seg', 'mmseg'), ('sample-det', 'mmdet')])
@pytest.mark.parametrize('method', GROUPS['returning'])
def test_ways_to_bring_tokens_back_change_what_they_are_named_for(data, library, method, base, data_folder):
    pytest.importorskip(library)
    if data == 'sample-det' and needs_label_maps(method):
        with pytest.raises(ValueError, match='-logits: the data have no label maps'):
            change(base, data, method)
        return
    cfg = change(base, data, method)
    model = build_model(cfg)
    neck = model.neck if data == 'sample-seg' else model.neck[0]
    plain = method == 'cropr-no-curriculum'
    assert cfg.custom_hooks[0].ramp == (0 if plain else 0.5)
    assert model.backbone.fusion == plain and model.backbone.schedule.blocks == (0, 1, 2, 3, 4, 5)
    assert neck.fill == {'cropr-zero': 'zero', 'cropr-mask-token': 'mask_token'}.get(method, 'exit')
    assert (neck.num_classes == 9) == (method == 'cropr-logits')
    if method == 'cropr-logits':
        assert type(model.decode_head.head).__name__ == 'FCNHead' and model.num_classes == 9


@pytest.mark.parametrize('method', GROUPS['cheaper'])
def test_cheaper_auxiliary_sides_change_what_they_are_named_for(method, base, data_folder):
    pytest.importorskip('mmseg')
    cfg = change(base, 'sample-seg', method)
    model = build_model(cfg)
    assert cfg.model.backbone.pruning.get('aux_share', 1) == (0.5 if method.endswith('half') else 1)
    queries = {'cropr-half': 1, 'cropr-patch-stride2': 36, 'cropr-patch-stride4': 9}.get(method, 144)
    assert len(next(model.backbone.pruners.children()).queries) == queries


@pytest.mark.parametrize('pruner', ['random', 'cropr', 'cropr-multilabel'])
@pytest.mark.parametrize(
    'setting, blocks, left',
    [
        ('', (0, 1, 2, 3, 4, 5), 24),
        ('-50', (0, 1, 2, 3, 4, 5), 72),
        ('-75', (0, 1, 2, 3, 4, 5), 40),  # 37 with the [CLS] token, the nearest multiple of 8
        ('-stages3', (1, 3, 5), 24),
        ('-stages3-50', (1, 3, 5), 72),
        ('-50-stages3-exit', (1, 3, 5), 72),
        ('-exit', (0, 1, 2, 3, 4, 5), 24),
    ],
)
def test_rates_and_stages_keep_what_they_are_named_for(pruner, setting, blocks, left, base):
    cfg = change(base, 'sample-seg', pruner + setting)
    schedule = schedule_of(cfg)
    assert schedule.blocks == blocks and 145 - sum(schedule.counts((12, 12), 1)) == left
    assert (schedule.fusion is None) == ('exit' in setting)
    expected = dict(random='RandomPruner', cropr='DifficultyPruner').get(pruner, 'CroprPruner')
    assert cfg.model.backbone.pruning.pruner.type == expected


@pytest.mark.parametrize('method', GROUPS['retrofit'])
def test_what_starts_from_a_dense_model_trains_half_as_long(method, base):
    cfg = change(base, 'sample-seg', method)
    assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == cfg.param_scheduler[1].end == 300
    assert cfg.custom_hooks[0].get('retrofit', False) == (method == 'cropr-retrofit')


@pytest.mark.parametrize('keep', [{1: 0.5, 5: 0.25}, {'1': 0.5, '5': 0.25}])
def test_a_stepwise_config_is_changed_as_well(keep, base):
    cfg = Config(base['sample-seg'].to_dict())
    cfg.merge_from_dict({'model.backbone.pruning': dict(rate=None, keep=keep)})
    stages, midway = Config(cfg.to_dict()), Config(cfg.to_dict())
    apply_method(stages, 'cropr-stages3')
    schedule = schedule_of(stages)
    assert schedule.blocks == (1, 3, 5) and 145 - sum(schedule.counts((12, 12), 1)) == 40
    apply_method(midway, 'cropr-midway')
    schedule = schedule_of(midway)
    assert schedule.blocks == (3,) and 145 - sum(schedule.counts((12, 12), 1)) == 40


def test_every_group_is_of_methods_that_are_there(base):
    for data in ('sample-seg', 'sample-det'):
        for method in arguments(data, '--methods', *GROUPS).methods:
            if not method.startswith('dense'):
                change(base, data, method)
    assert 'cropr-patch' not in arguments('det').methods and 'cropr-patch' in arguments('seg').methods


@pytest.mark.parametrize('method', ['croprr', 'cropr-', 'cropr-5', 'random-50x', 'dense-50', ''])
def test_an_unknown_method_is_refused(method, capsys):
    with pytest.raises(SystemExit, match=r'is unknown; valid are dense, .*-blocks75, .*the pruners cropr, random'):
        arguments('seg', '--methods', method)


def test_what_does_not_fit_the_data_is_said(base):
    with pytest.raises(ValueError, match='cropr-patch learns from label maps'):
        change(base, 'sample-det', 'cropr-patch')
    cfg = Config(base['sample-seg'].to_dict())
    cfg.object_classes = None
    with pytest.raises(ValueError, match='object_classes is not in the config'):
        apply_method(cfg, 'oracle')
    cfg = change(base, 'sample-seg', 'random')
    with pytest.raises(ValueError, match=r'pruner\.num_classes is not in the config'):
        apply_method(cfg, 'cropr-multilabel')


def test_a_method_of_ones_own():
    assert own_method('wide=x=1') == ('wide', 'cropr', ['x=1'])
    assert own_method('wide=cropr-patch a.b=2 c="x y"') == ('wide', 'cropr-patch', ['a.b=2', 'c=x y'])
    args = arguments('seg', '--method', 'wide=random custom_hooks.0.ramp=0.9')
    assert args.methods == ['wide']
    cfg = compare.config_of(args, 'wide')
    assert cfg.custom_hooks[0].ramp == 0.9 and cfg.model.backbone.pruning.pruner.type == 'RandomPruner'


@pytest.mark.parametrize('text', ['wide', 'wide=', '=a=1', 'a/b=x=1', 'wide=random', 'wide=random x', 'wide=what x=1'])
def test_a_method_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r'is expected|is unknown'):
        own_method(text)


@pytest.mark.parametrize('name', ['random', 'cropr-50', 'dense', 'pruners'])
def test_names_that_are_taken_are_refused(name):
    with pytest.raises(ValueError, match='is there already'):
        own_method(f'{name}=a=1')


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'custom_hooks\.7\.ramp=0' does not fit"):
        compare.config_of(arguments('seg', '--cfg-options', 'custom_hooks.7.ramp=0'), 'cropr')


def test_pruners_and_changes_do_not_clash():
    """Else a name could be read in two ways."""
    assert not {f'{p}-{c}' for p in PRUNERS for c in CHANGES} & set(PRUNERS)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    def plan(*more):
        return compare.plan_run(arguments('seg', '--work-dir', tmp_path, *more), 'cropr-exit', 0)

    folder = tmp_path / 'cropr-exit-0'
    digest = plan().digest
    folder.mkdir()
    with pytest.raises(ValueError, match='cropr-exit-0: was run with another config'):
        plan()
    (folder / 'plan').write_text(digest)
    plan()
    for other in (['--cfg-options', 'train_cfg.max_iters=9'], ['--amp']):
        with pytest.raises(ValueError, match='was run with another config'):
            plan(*other)


@pytest.fixture
def tools(monkeypatch):
    """tools/train.py fails with seed 1 and otherwise leaves what a training leaves."""
    calls, reading = [], threading.Lock()

    def call(command, stdout, env, **_):
        tool, config, *more = command[1].split('/')[-1], *command[2:]
        with reading:  # threads that parse at the same time disturb each other in Python 3.11
            cfg = Config.fromfile(config)
        calls.append((tool, cfg, more))
        if tool == 'analyze_routing.py':
            shares = dict(object=[1, 0.5, 1], background=[1, 0.2, 1], classes={})
            compare.write_json(more[more.index('--json') + 1], shares)
            return 0
        if cfg.randomness.seed == 1:
            stdout.write('something\ntrain.py: error: no memory\n')
            return 1
        folder = compare.Path(more[1])
        (folder / 'last_checkpoint').write_text(f'{folder}/iter.pth')
        (folder / '0' / 'vis_data').mkdir(parents=True)
        classes = {'IoU.sand': 90.0, 'IoU.red circle': 30.0, 'IoU.blue star': 50.0, 'IoU.grass': float('nan')}
        lines = [dict(loss=1, time=0.5), {'mIoU': 50.0, **classes}]
        text = ''.join(json.dumps(line) + '\n' for line in lines) + '{"half'
        (folder / '0' / 'vis_data' / 'scalars.json').write_text(text)
        return 0

    monkeypatch.setattr(subprocess, 'call', call)
    return calls


def run(monkeypatch, *more):
    monkeypatch.setattr(sys, 'argv', ['tools/compare.py', *map(str, more)])
    compare.main()


@pytest.mark.parametrize('method', GROUPS['retrofit'])
def test_a_run_that_fails_does_not_stop_the_others(method, tools, tmp_path, monkeypatch, capsys):
    argv = ('seg', '--methods', method, '--seeds', 0, 1, 2, '--jobs', 2, '--work-dir', tmp_path, '--amp')
    with pytest.raises(SystemExit, match=r'1 of 3 runs failed:\ndense, seed 1: tools/train\.py ended .*no memory'):
        run(monkeypatch, *argv)
    content = json.loads((tmp_path / 'results.json').read_text())
    assert [(r['method'], r['seed']) for r in content['results']] == [(method, 0), (method, 2)]
    assert content['command'].startswith('tools/compare.py seg') and 'torch' in content and content['amp']
    assert content['results'][0]['mIoU'] == 50 and content['results'][0]['seconds_per_iteration'] == 0.5
    pruned = [more for tool, cfg, more in tools if tool == 'train.py' and cfg.get('custom_hooks')]
    assert f'load_from={tmp_path}/dense-0/iter.pth' in pruned[0] + pruned[1]
    assert all('--amp' in more for tool, _, more in tools if tool == 'train.py')

    tools.clear()  # what is finished is not repeated
    with pytest.raises(SystemExit):
        run(monkeypatch, *argv)
    assert {cfg.randomness.seed for _, cfg, _ in tools} == {1}
    tools.clear()
    capsys.readouterr()
    run(monkeypatch, 'seg', '--methods', 'dense', method, '--work-dir', tmp_path, '--table')
    assert not tools and f'| {method} | 50.0 (50.0–50.0) |' in capsys.readouterr().out


def test_a_run_that_was_cut_short_before_its_evaluation_is_evaluated(tools, tmp_path, monkeypatch):
    """The checkpoint is there, so nothing is left to train, and mmengine would evaluate nothing."""
    fake = subprocess.call

    def call(command, **more):
        if command[1].endswith('test.py'):
            assert command[3] == f'{tmp_path}/cropr-0/iter.pth'
            log = compare.Path(command[-1]) / '1' / '1.json'
            log.parent.mkdir()
            log.write_text(json.dumps({'mIoU': 60.0, 'IoU.sand': 70.0}))
            return 0
        code = fake(command, **more)
        (tmp_path / 'cropr-0' / '0' / 'vis_data' / 'scalars.json').write_text('{"loss": 1, "time": 0.5}\n')
        return code

    monkeypatch.setattr(subprocess, 'call', call)
    run(monkeypatch, 'seg', '--methods', 'cropr', '--seeds', 0, '--work-dir', tmp_path)
    mine = json.loads((tmp_path / 'cropr-0' / 'result.json').read_text())
    assert (mine['mIoU'], mine['classes'], mine['seconds_per_iteration']) == (60.0, {'sand': 70.0}, 0.5)


def test_a_run_of_another_process_is_waited_for(tools, tmp_path, monkeypatch, capsys):
    argv = ('seg', '--methods', 'dense', '--seeds', 0, '--work-dir', tmp_path)
    run(monkeypatch, *argv)
    result = tmp_path / 'dense-0' / 'result.json'
    content = result.read_text()
    tools.clear()
    result.unlink()
    with FileLock(tmp_path / '.dense-0.lock'):
        other = threading.Thread(target=run, args=(monkeypatch, *argv))
        other.start()
        other.join(2)
        assert other.is_alive() and not tools
        result.write_text(content)
    other.join(30)
    assert not other.is_alive() and not tools
    assert 'dense, seed 0: is being run already; waiting for it' in capsys.readouterr().out


def test_objects_and_classes_are_read_from_the_log(tools, tmp_path, monkeypatch):
    run(monkeypatch, 'seg', '--methods', 'cropr', '--seeds', 0, '--work-dir', tmp_path)
    mine = json.loads((tmp_path / 'cropr-0' / 'result.json').read_text())
    assert mine['classes'] == {'sand': 90.0, 'red circle': 30.0, 'blue star': 50.0}
    assert mine['object_IoU'] == 40.0


@pytest.mark.parametrize('routing, counted', [('first', {3}), ('all', {3, 0})])
def test_tokens_are_counted_of_the_first_seed_or_of_all(routing, counted, tools, tmp_path, monkeypatch, capsys):
    argv = ('seg', '--methods', 'dense', 'cropr', '--seeds', 3, 0, '--work-dir', tmp_path, '--routing', routing)
    run(monkeypatch, *argv)
    assert {cfg.randomness.seed for tool, cfg, _ in tools if tool == 'analyze_routing.py'} == counted
    results = json.loads((tmp_path / 'results.json').read_text())['results']
    assert len(results) == 4
    assert {r['seed'] for r in results if r['routing'] and r['method'] == 'cropr'} == counted
    assert '| cropr | 50.0 (50.0–50.0) | – | 40.0 | 50 % | 20 % |' in capsys.readouterr().out


def test_without_a_finished_run_there_is_no_table(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match='no finished run'):
        run(monkeypatch, 'camvid', '--table', '--work-dir', tmp_path)


@pytest.mark.parametrize(
    'method, depth, grid, side',
    [
        ('dense-blocks50', 4, (12, 12), 96),
        ('dense-patch150', 8, (8, 8), 96),
        ('dense-resolution75', 8, (9, 9), 72),
        ('dense-blocks75-resolution50', 6, (6, 6), 48),
    ],
)
def test_cheaper_dense_models_are_what_they_are_named_for(method, depth, grid, side, data_folder):
    pytest.importorskip('mmseg')
    cfg = compare.config_of(arguments('seg'), method)
    model = build_model(cfg)
    model.init_weights()
    backbone, weights = model.backbone, Config.fromfile(str(CONFIGS / 'fcn_dense-vit_sample.py'))
    assert (backbone.depth, backbone.grid, backbone.schedule) == (depth, grid, None)
    whole = build_model(weights)
    whole.init_weights()
    assert torch.equal(backbone.blocks[depth - 1].mlp.fc1.weight, whole.backbone.blocks[depth - 1].mlp.fc1.weight)
    assert tuple(cfg.model.data_preprocessor.size) == (side, side)


def test_smaller_images_are_tested_on_the_labels_as_they_are(data_folder):
    pytest.importorskip('mmseg')
    from mmengine.registry import DATASETS, init_default_scope

    cfg = compare.config_of(arguments('seg'), 'dense-resolution50')
    init_default_scope('mmseg')
    test, train = (DATASETS.build(loader.dataset)[0] for loader in (cfg.test_dataloader, cfg.train_dataloader))
    assert test['inputs'].shape == (3, 48, 48) and test['data_samples'].gt_sem_seg.shape == (96, 96)
    assert test['data_samples'].ori_shape == (96, 96)
    assert train['inputs'].shape == (3, 48, 48) and train['data_samples'].gt_sem_seg.shape == (48, 48)


def test_smaller_images_of_detectors_are_refused():
    with pytest.raises(ValueError, match='dense-resolution: a config of mmsegmentation is expected'):
        compare.config_of(arguments('det'), 'dense-resolution50')


def test_an_untrained_method_tests_the_dense_checkpoint(tools, tmp_path, monkeypatch):
    fake, tested = subprocess.call, []

    def call(command, **more):
        if not command[1].endswith('test.py'):
            return fake(command, **more)
        tested.append((Config.fromfile(command[2]).model.backbone.pruning.pruner.type, command[3]))
        log = compare.Path(command[-1]) / '1' / '1.json'
        log.parent.mkdir()
        log.write_text(json.dumps({'mIoU': 60.0, 'IoU.sand': 70.0}))
        return 0

    monkeypatch.setattr(subprocess, 'call', call)
    methods = ('seg', '--methods', 'tome-50-untrained', '--seeds', 0, '--work-dir', tmp_path, '--routing', 'none')
    run(monkeypatch, *methods)
    assert tested == [('ToMeReducer', f'{tmp_path}/dense-0/iter.pth')]
    assert [tool for tool, _, _ in tools] == ['train.py']  # the dense one alone
    assert json.loads((tmp_path / 'tome-50-untrained-0' / 'result.json').read_text())['mIoU'] == 60


def test_compare_times_what_is_finished(data_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmseg')
    for method, score in (('dense', 40.0), ('tome', 38.0)):
        folder = tmp_path / f'{method}-0'
        folder.mkdir()
        result = dict(method=method, seed=0, mIoU=score, classes={}, seconds_per_iteration=1, routing=None, about={})
        (folder / 'result.json').write_text(json.dumps(result))
    seen = {}

    def timed(models, batch_size, rounds):
        seen.update(models)
        timings = {name: Timing(batch_size, (0.5 if name == 'tome' else 1.0,)) for name in models}
        return timings, dict.fromkeys(models, 8)

    monkeypatch.setattr(compare, 'time_models', timed)
    argv = ('seg', '--methods', 'dense', 'tome', '--table', '--speed', 2, '--work-dir', tmp_path)
    run(monkeypatch, *argv)
    assert not seen['dense'][0].backbone.pruners and seen['dense'][1]['inputs'].shape == (2, 3, 96, 96)
    assert type(seen['tome'][0].backbone.pruners['0']).__name__ == 'ToMeReducer'
    said = capsys.readouterr().out
    assert '| tome | 2.00× (0%) | 1.00 | 38.0 * |' in said
    files = ('table.md', 'results.json', 'pareto-b2.png', 'pareto-b2.json')
    assert said.splitlines()[-4:] == [f'written: {tmp_path / file}' for file in files]
    assert all((tmp_path / file).is_file() for file in files)
    content = json.loads((tmp_path / 'pareto-b2.json').read_text())
    assert content['batch_size'] == 2 and [p['speed'] for p in content['points']] == [1.0, 2.0]
    assert content['points'][1]['family'] == 'tome'
    (tmp_path / 'dense-0' / 'result.json').unlink()
    with pytest.raises(SystemExit, match='--speed: no finished run of dense'):
        run(monkeypatch, *argv)
