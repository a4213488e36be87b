"""The comparison's table and its variants; the runs themselves are those of tools/train.py."""

import argparse
import runpy

import pytest
from mmengine.config import Config, DictAction

from cropr_mm.cli.model import build_model

from .conftest import ROOT

compare = runpy.run_path(str(ROOT / 'tools' / 'compare.py'), run_name='compare')


def result(method, seed, value, kept):
    routing = None if kept is None else dict(object=[1.0, kept, 1.0], background=[1.0, kept / 2, 1.0])
    return dict(method=method, seed=seed, mIoU=value, routing=routing)


def test_the_table_by_hand():
    runs = [('dense', 80, None), ('oracle', 70, 1.0), ('random', 50, 0.2), ('cropr', 65, 0.9)]
    results = [result(m, seed, value + seed, kept) for m, value, kept in runs for seed in (0, 2, 1)]
    assert compare['table']('seg', results).splitlines() == [
        '| pruner | mIoU | headroom recovered | objects kept | background kept |',
        '| --- | --- | --- | --- | --- |',
        '| dense | 81.0 (80.0–82.0) | 150 % | 100 % | 100 % |',
        '| oracle | 71.0 (70.0–72.0) | 100 % | 100 % | 50 % |',
        '| random | 51.0 (50.0–52.0) | 0 % | 20 % | 10 % |',
        '| cropr | 66.0 (65.0–67.0) | 75 % | 90 % | 45 % |',
    ]


def test_without_the_scale_there_is_no_headroom():
    assert '| – |' in compare['table']('seg', [result('cropr', 0, 65.0, 0.9)])


def build_variant(task, method):
    """Config and model of a method with its changes."""
    cfg = Config.fromfile(str(compare['config_of'](task, method)))
    changes = (change.format(neck=compare['NECKS'][task]) for change in compare['VARIANTS'][method][1])
    cfg.merge_from_dict({k: DictAction._parse_iterable(v) for k, v in (change.split('=', 1) for change in changes)})
    return cfg, build_model(cfg)


@pytest.mark.parametrize('task, library', [('seg', 'mmseg'), ('det', 'mmdet')])
@pytest.mark.parametrize('method', compare['RETURNING'])
def test_ways_to_bring_tokens_back_change_what_they_are_named_for(task, library, method, data_folder):
    pytest.importorskip(library)
    cfg, model = build_variant(task, method)
    neck = model.neck if task == 'seg' else model.neck[0]
    plain = method == 'cropr-no-curriculum'
    assert cfg.custom_hooks[0].ramp == (0 if plain else 0.5)
    assert model.backbone.fusion == plain and model.backbone.schedule.blocks == (0, 1, 2, 3, 4, 5)
    assert neck.fill == {'cropr-zero': 'zero', 'cropr-mask-token': 'mask_token'}.get(method, 'exit')


@pytest.mark.parametrize('method', compare['CHEAPER'])
def test_cheaper_auxiliary_sides_change_what_they_are_named_for(method, data_folder):
    pytest.importorskip('mmseg')
    cfg, model = build_variant('seg', method)
    assert cfg.model.backbone.pruning.get('aux_share', 1) == (0.5 if method.endswith('half') else 1)
    queries = {'cropr-half': 1, 'cropr-patch-stride2': 36, 'cropr-patch-stride4': 9}.get(method, 144)
    assert len(next(model.backbone.pruners.children()).queries) == queries


@pytest.mark.parametrize('task', ['seg', 'det'])
def test_every_method_has_a_config(task):
    assert all(compare['config_of'](task, method).is_file() for method in compare['METHODS'][task])


def test_a_folder_of_other_settings_is_refused(tmp_path):
    args = argparse.Namespace(task='seg', work_dir=tmp_path, cfg_options=[])
    check, folder = compare['check_folder'], tmp_path / 'cropr-exit-0'
    check(args, 'cropr-exit', 0)
    folder.mkdir()
    with pytest.raises(ValueError, match='cropr-exit-0: was run with another config'):
        check(args, 'cropr-exit', 0)
    (folder / 'plan').write_text(compare['digest'](args, 'cropr-exit', 0))
    check(args, 'cropr-exit', 0)
    with pytest.raises(ValueError, match='was run with another config'):
        check(argparse.Namespace(**{**vars(args), 'cfg_options': ['train_cfg.max_iters=9']}), 'cropr-exit', 0)
