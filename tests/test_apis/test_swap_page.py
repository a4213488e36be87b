"""docs/swap.md: its diffs build and train, before and after, and its error messages are those of the code."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from cropr_mm import CroprHook, CroprViT
from cropr_mm.cli.launch import build_model, build_runner, register_library
from cropr_mm.engine.curriculum import Curriculum
from cropr_mm.engine.retrofit import check_start

from ..test_heads.steps import det_batch, seg_batch, shrink, step
from ..test_heads.table import Entry
from ..test_tools.conftest import ROOT

PAGE = (ROOT / 'docs' / 'swap.md').read_text()
BLOCKS = {kind: re.findall(rf'```{kind}\n(.*?)```', PAGE, re.S) for kind in ('diff', 'text', 'python')}
SMALL = {
    "'vit-base'": "dict(family='vit', embed_dim=32, depth=4, num_heads=2)",
    '768': '32',
    'img_size=512': 'img_size=96',
    'img_size=1024': 'img_size=96',
    'target_ratio=0.8': 'target_ratio=0.6',
    "init_cfg=dict(type='Pretrained', checkpoint='mae_pretrain_vit_base.pth'),": '',  # no such file here
}


def config(text, folder):
    """A config of this text, shrunken, with its library imported."""
    for long, short in SMALL.items():
        text = text.replace(long, short)
    file = folder / 'config.py'
    file.write_text(text)
    cfg = Config.fromfile(str(file))
    shrink(cfg.model, 96)
    register_library(cfg)
    return cfg


def side(diff, sign):
    """One of the two files that a diff stands between."""
    return '\n'.join(line[1:] for line in diff.splitlines() if line[:1] in (' ', sign))


@pytest.mark.slow
@pytest.mark.parametrize('number, library', enumerate(('mmseg', 'mmdet', 'mmdet')))
def test_diffs_train(number, library, tmp_path):
    pytest.importorskip(library)
    assert len(BLOCKS['diff']) == 3
    before, after = (side(BLOCKS['diff'][number], sign) for sign in '-+')
    old = config(before, tmp_path)
    assert old.model.backbone.type.startswith('ResNet')
    build_model(old)
    cfg = config(after, tmp_path)
    batch = seg_batch if library == 'mmseg' else det_batch
    step(cfg, lambda: batch(cfg, Entry('', side=96)))
    if 'constructor' in after:
        groups = build_optim_wrapper(build_model(cfg), cfg.optim_wrapper).optimizer.param_groups
        assert len({group['lr'] for group in groups}) == 6  # embedding, four blocks, the rest


@pytest.mark.slow
def test_a_few_lines(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_config.py').write_text(side(BLOCKS['diff'][0], '-'))
    code = BLOCKS['python'][0]
    for long, short in SMALL.items():
        code = code.replace(long, short)
    exec(code, {})
    cfg = Config.fromfile('my_config_cropr.py')
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    shrink(cfg.model, 96)
    step(cfg, lambda: seg_batch(cfg, Entry('', side=96)))


# --- error messages --------------------------------------------------------------------------------------------------


def vit(pruning=None, **settings):
    arch = dict(family='vit', embed_dim=16, depth=4, num_heads=2, **settings.pop('arch', {}))
    return CroprViT(arch, **{'img_size': 32, 'patch_size': 8, 'pruning': pruning, **settings})


def difficulty(**settings):
    return dict(pruner=dict(type='DifficultyPruner', num_classes=3), **settings)


def not_imported():
    code = "from mmengine.registry import MODELS; MODELS.build(dict(type='CroprViT'))"
    raise KeyError(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr)


def no_hook():
    model = vit(difficulty(rate=4)).train()
    for _ in range(2):
        model(torch.randn(2, 3, 32, 32))


def wrong_class():
    from ..helpers import seg_sample

    model = vit(difficulty(rate=4)).train()
    model(torch.randn(1, 3, 32, 32))
    model.aux_losses([seg_sample(torch.full((32, 32), 7))])


def other_weights():
    torch.save(torch.nn.Linear(2, 2).state_dict() | vit(arch=dict(mlp_ratio=2.0)).state_dict(), 'weights.pth')
    vit(init_cfg=dict(type='Pretrained', checkpoint='weights.pth')).init_weights()


def folded():
    trained = vit(difficulty(rate=4))
    trained.switch_to_deploy()
    vit(difficulty(rate=4)).load_state_dict(trained.state_dict())


def sharded_average():
    build_runner(Config(dict(launcher='pytorch', strategy=dict(type='CroprFSDPStrategy'),
                             custom_hooks=[dict(type='EMAHook')])))  # fmt: skip


def no_reinsertion():
    torch.nn.Conv2d(16, 3, 1)(vit()(torch.randn(1, 3, 32, 32))[0])


def no_reinsertion_for_shapes():
    try:
        vit()(torch.randn(1, 3, 32, 32))[0].size(0)
    except AttributeError as error:
        raise TypeError(*error.args) from error


def other_stride():
    maps = MODELS.build(dict(type='TokenReinsertion'))(vit()(torch.randn(1, 3, 32, 32)))
    MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=16))(maps)


def old_arguments(**settings):
    MODELS.build(dict(type='CroprViT', arch='vit-tiny', **settings))


def level_of_the_old_backbone():
    decode_head = pytest.importorskip('mmseg.models').FCNHead(in_channels=16, channels=4, num_classes=3, in_index=2)
    try:
        decode_head(MODELS.build(dict(type='TokenReinsertion'))(vit()(torch.randn(1, 3, 32, 32))))
    except IndexError as error:
        raise ValueError(*error.args) from error


def pyramid_first():
    MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=16))(vit()(torch.randn(1, 3, 32, 32)))


# In the order of the page.
ERRORS = [
    not_imported,
    no_hook,
    lambda: CroprHook().attach(torch.nn.Identity()),
    wrong_class,
    lambda: vit(difficulty(rate=9)),
    lambda: vit(difficulty(target_ratio=1.0)),
    no_reinsertion,
    no_reinsertion_for_shapes,
    other_stride,
    lambda: old_arguments(pretrained='resnet.pth'),
    lambda: old_arguments(depth=50),
    level_of_the_old_backbone,
    pyramid_first,
    lambda: MODELS.build(dict(type='TokenReinsertion'))((torch.randn(1, 16, 4, 4),)),
    lambda: vit(dict(pruner=dict(type='AttentionPruner'), rate=4), arch=dict(class_token=False)),
    other_weights,
    folded,
    lambda: vit(global_blocks=(2,)),
    lambda: Curriculum(ramp=0.7, begin=0.7),
    lambda: Curriculum(by_epoch=True).check(SimpleNamespace(train_loop=SimpleNamespace())),
    lambda: check_start(vit(), False),
    sharded_average,
]


@pytest.mark.parametrize('number', range(len(ERRORS)))
def test_messages(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS['text']) == len(ERRORS)
    quoted = BLOCKS['text'][number].strip()
    with pytest.raises((ValueError, TypeError, RuntimeError, KeyError)) as error:
        ERRORS[number]()
    pattern = '.+?'.join(re.escape(part) for part in quoted.split('…'))
    assert re.search(pattern, str(error.value.args[0]), re.S), f'{quoted}\n{error.value}'
