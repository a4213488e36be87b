"""What is wrong with a command line is said before anything starts."""

import argparse

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from cropr_mm.cli.arguments import plain_errors
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data, check_weights
from cropr_mm.cli.model import build_model, load_model
from cropr_mm.cli.run import build_runner, set_resume
from cropr_mm.engine import OracleHook


def arguments(config, **settings):
    values = dict(config=str(config), work_dir=None, cfg_options=None, launcher='none', local_rank=0)
    return argparse.Namespace(**{**values, **settings})


def test_a_misspelt_config_is_answered_with_similar_ones(tmp_path):
    (tmp_path / 'fcn_cropr-vit_sample.py').write_text('a = 1')
    (tmp_path / 'unrelated.py').write_text('a = 1')
    with pytest.raises(FileNotFoundError, match=r'fcn_croper-vit_sample.*did you mean .*fcn_cropr-vit_sample.py\?'):
        load_config(arguments(tmp_path / 'fcn_croper-vit_sample.py'))
    with pytest.raises(FileNotFoundError, match=r'did you mean .*fcn_cropr-vit_sample.py\?'):
        load_config(arguments(tmp_path / 'no_folder' / 'fcn_cropr_vit_sample.py'))


def test_options_of_the_command_line_win(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text("work_dir = 'there'\nmodel = dict(depth=1)")
    assert load_config(arguments(file)).work_dir == 'there'
    cfg = load_config(arguments(file, work_dir='here', cfg_options={'model.depth': 2}))
    assert (cfg.work_dir, cfg.model.depth) == ('here', 2)
    file.write_text('')
    assert load_config(arguments(file)).work_dir == 'work_dirs/mine'


def test_a_missing_library_is_named(tmp_path):
    (tmp_path / 'mine.py').write_text("default_scope = 'mmnothing'")
    with pytest.raises(ModuleNotFoundError, match=r"default_scope='mmnothing'.*pip install mmnothing"):
        load_config(arguments(tmp_path / 'mine.py'))


DATASET = dict(ann_file='a.json', data_prefix=dict(img='images', seg='labels'))


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: dict(type='RepeatDataset', times=2, dataset=d)])
def test_missing_data_names_key_path_and_remedy(tmp_path, wrap):
    cfg = Config(dict(train_dataloader=dict(dataset=wrap(dict(DATASET, data_root=str(tmp_path)))),
                      data_hint='Make it with: make data'))  # fmt: skip
    steps = ('ann_file', 'a.json'), ('data_prefix.img', 'images'), ('data_prefix.seg', 'labels')
    for key, name in steps:
        with pytest.raises(FileNotFoundError, match=rf'train_dataloader\..*{key}.*/{name} .*Make it with: make data'):
            check_data(cfg, ['train_dataloader', 'val_dataloader'])
        (tmp_path / name).mkdir()
    check_data(cfg, ['train_dataloader', 'val_dataloader'])


def test_data_in_other_places_is_left_to_mmengine():
    remote = [dict(DATASET, data_root='s3://bucket/'), dict(DATASET, backend_args=dict(backend='petrel'))]
    cfg = Config(dict(val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=remote))))
    check_data(cfg, ['val_dataloader'])
    cfg.val_dataloader.dataset.datasets.append(dict(DATASET, data_root='/nowhere'))
    with pytest.raises(FileNotFoundError, match=r'val_dataloader.dataset.datasets\[2\].data_root: /nowhere'):
        check_data(cfg, ['val_dataloader'])


@pytest.mark.parametrize(
    'model, key',
    [
        (lambda init: dict(backbone=dict(init_cfg=init)), r'model\.backbone\.init_cfg\.checkpoint'),
        (
            lambda init: dict(detector=dict(neck=[dict(), dict(init_cfg=[init])])),
            r'model\.detector\.neck\[1\]\.init_cfg\[0\]\.checkpoint',
        ),
    ],
)
def test_a_missing_checkpoint_names_key_path_and_remedy(tmp_path, model, key):
    file = tmp_path / 'vit.pth'
    init = dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    cfg = Config(dict(model=model(init), checkpoint_hint='Download it.'))
    with pytest.raises(FileNotFoundError, match=rf'^{key}: {file} does not exist\. Download it\.$'):
        check_weights(cfg)
    cfg.checkpoint_hint = None
    with pytest.raises(FileNotFoundError, match=rf'^{key}: {file} does not exist$'):
        check_weights(cfg)
    file.touch()
    check_weights(cfg)


def test_checkpoints_that_are_no_files_here_are_left_to_what_loads_them():
    remote = [dict(type='Pretrained', checkpoint='torchvision://resnet50'), dict(type='Kaiming', layer='Conv2d')]
    check_weights(Config(dict(model=dict(backbone=dict(init_cfg=remote), pretrained=None))))
    check_weights(Config(dict()))


def test_resume(tmp_path):
    file = tmp_path / 'iter_3.pth'
    torch.save(dict(a=torch.zeros(100)), file)
    cfg = Config(dict(work_dir=str(tmp_path)))
    set_resume(cfg, None)
    assert not cfg.get('resume')
    set_resume(cfg, 'auto')  # there is no last checkpoint: mmengine starts from the beginning
    assert cfg.resume and cfg.get('load_from') is None
    fine_tuning = Config(dict(work_dir=str(tmp_path), load_from=str(file)))
    set_resume(fine_tuning, 'auto')  # nothing to resume yet: it starts from where the config says
    assert not fine_tuning.resume and fine_tuning.load_from == str(file)
    set_resume(cfg, str(file))
    assert cfg.load_from == str(file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r'--resume=.*iter_3.pth'):
        set_resume(cfg, str(file))
    (tmp_path / 'last_checkpoint').write_text(str(file))
    fine_tuning = Config(dict(work_dir=str(tmp_path), load_from='elsewhere.pth'))
    with pytest.raises(ValueError, match=r'--resume=.*iter_3.pth'):
        set_resume(fine_tuning, 'auto')
    assert fine_tuning.resume and fine_tuning.load_from is None
    with pytest.raises(ValueError, match=r'--resume=.*iter_3.pth'):
        set_resume(cfg, 'auto')


def test_plain_errors_end_the_program_in_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/train.py'])
    with pytest.raises(SystemExit, match=r'^train.py: error: a.py is not there$'), plain_errors():
        raise FileNotFoundError('a.py is not there')
    with pytest.raises(ZeroDivisionError), plain_errors():  # our own mistakes keep their traceback
        1 / 0  # noqa: B018


def test_what_a_library_itself_lacks_is_named(tmp_path, monkeypatch):
    """mmpretrain imports torchvision and does not declare it."""
    library = tmp_path / 'mmhalf'
    library.mkdir()
    (library / '__init__.py').touch()
    (library / 'utils.py').write_text('import a_module_that_is_not_there')
    (tmp_path / 'mine.py').write_text("default_scope = 'mmhalf'")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"'mmhalf'.* and that the module a_module_that_is_not_there"):
        load_config(arguments(tmp_path / 'mine.py'))


def test_a_data_preprocessor_beside_the_model_joins_it():
    """As mmpretrain's configs have it, and as mmengine's Runner treats it."""
    beside = dict(type='BaseDataPreprocessor')
    model = dict(type='ToyModelForLaunch')
    assert isinstance(build_model(Config(dict(model=model, data_preprocessor=beside))).given, dict)
    own = dict(model, data_preprocessor=dict(own=True))
    assert build_model(Config(dict(model=own, data_preprocessor=beside))).given == dict(own=True)


def test_models_without_the_hook_compute_bfloat16_too(monkeypatch):
    asked = []
    monkeypatch.setattr('cropr_mm.cli.launch.let_mmcv_take_bfloat16', lambda: asked.append(True))
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: cfg)
    build_model(Config(dict(model=dict(type='ToyModelForLaunch'))))
    build_runner(Config(dict(launcher='none')))
    assert asked == [True, True]


@MODELS.register_module()
class ToyModelForLaunch(torch.nn.Module):
    def __init__(self, data_preprocessor=None):
        super().__init__()
        self.given = data_preprocessor


@pytest.mark.parametrize('kind', [OracleHook, 'mmengine.OracleHook', 'OracleHook'])
def test_the_oracle_is_attached_however_its_type_is_written(kind):
    cfg = dict(model=dict(type='ToyModelForLaunch'), custom_hooks=[dict(type='NoHookThatExists'), dict(type=kind)])
    with pytest.raises(ValueError, match='OracleHook: the model has no OraclePruner'):  # which attaching finds out
        build_model(Config(cfg))


def test_a_checkpoint_that_leaves_weights_random_is_refused(tmp_path):
    backbone = dict(type='CroprViT', arch=dict(family='vit', embed_dim=16, depth=4, num_heads=2), img_size=32)
    scorer = dict(type='CroprPruner', aux_head=dict(type='PatchSegAuxHead', num_classes=3))

    def config(pruner):
        return Config(dict(model={**backbone, 'patch_size': 8, 'pruning': pruner and dict(pruner=pruner, rate=4)}))

    def saved(pruner):
        torch.save(dict(state_dict=build_model(config(pruner)).state_dict()), tmp_path / 'weights.pth')
        return str(tmp_path / 'weights.pth')

    queries = load_model(config(scorer), saved(scorer)).pruners[0].queries
    assert queries.shape == (16, 16)
    load_model(config(dict(type='RandomPruner')), saved(scorer))  # what is left over does no harm
    with pytest.raises(ValueError, match=r'weights.pth: does not fit .*; missing: pruners.0.queries, .* and \d+ more'):
        load_model(config(scorer), saved(None))
    coarse = {**scorer, 'aux_head': {**scorer['aux_head'], 'query_stride': 2}}
    with pytest.raises(ValueError, match=r'weights.pth: .*does not fit .*pruners.0.queries'):
        load_model(config(coarse), saved(scorer))
