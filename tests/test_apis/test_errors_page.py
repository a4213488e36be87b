"""docs/errors.md: its messages are those of the code, in the order of the page."""

import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from cropr_mm import CroprHook, CroprViT
from cropr_mm.cli.run import build_runner
from cropr_mm.engine.checks import check_resumable
from cropr_mm.engine.curriculum import Curriculum
from cropr_mm.engine.finite_loss import FiniteLoss
from cropr_mm.engine.retrofit import check_start

from ..helpers import seg_sample
from .pages import blocks, page

MESSAGES = blocks(page('errors'), 'text')


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


def two_hooks():
    hooks = [CroprHook(), CroprHook()]
    hooks[0].before_train(SimpleNamespace(model=torch.nn.Sequential(vit(difficulty(rate=4))), hooks=hooks))


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


def diverged():
    optimizer = SimpleNamespace(get_lr=lambda: dict(lr=[1.0]))
    FiniteLoss().after_train_iter(
        SimpleNamespace(iter=9, max_iters=10, optim_wrapper=optimizer), 9, outputs=dict(loss=torch.tensor(math.nan))
    )


ERRORS = [
    # The config does not build
    not_imported,
    lambda: old_arguments(pretrained='resnet.pth'),
    lambda: old_arguments(depth=50),
    lambda: vit(difficulty(rate=9)),
    lambda: vit(difficulty(target_ratio=1.0)),
    lambda: vit(difficulty(rate=4, keep={0: 0.5})),
    lambda: vit(difficulty(keep='{0: 0.5}')),
    lambda: vit(dict(pruner=dict(type='AttentionPruner'), rate=4), arch=dict(class_token=False)),
    lambda: vit(global_blocks=(2,)),
    lambda: Curriculum(ramp=0.7, begin=0.7),
    # The first image fails
    no_reinsertion,
    no_reinsertion_for_shapes,
    pyramid_first,
    lambda: MODELS.build(dict(type='TokenReinsertion'))((torch.randn(1, 16, 4, 4),)),
    other_stride,
    level_of_the_old_backbone,
    # Training stops
    no_hook,
    lambda: CroprHook().attach(torch.nn.Identity()),
    two_hooks,
    wrong_class,
    diverged,
    lambda: Curriculum(by_epoch=True).check(SimpleNamespace(train_loop=SimpleNamespace())),
    lambda: check_start(vit(), False),
    sharded_average,
    # A checkpoint does not load
    other_weights,
    folded,
    lambda: check_resumable(dict(state_dict={}, meta={}), 'weights.pth'),
]


@pytest.mark.parametrize('number', range(len(ERRORS)))
def test_messages(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(MESSAGES) == len(ERRORS)
    quoted = MESSAGES[number].strip()
    with pytest.raises((ValueError, TypeError, RuntimeError, KeyError)) as error:
        ERRORS[number]()
    pattern = '.+?'.join(re.escape(part) for part in quoted.split('…'))
    assert re.search(pattern, str(error.value.args[0]), re.S), f'{quoted}\n{error.value}'
