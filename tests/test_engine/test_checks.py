"""What nothing would stop is said before the training starts, and nothing is said where all is well."""

import logging
from types import SimpleNamespace

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from cropr_mm import CroprViT
from cropr_mm.engine.checks import (
    TrainingChecks,
    arguments_of,
    check_config,
    config_warnings,
    label_warnings,
    optimizer_warnings,
    warn_before_training,
)

BACKBONE = dict(type='CroprViT', arch='vit-tiny', patch_size=8)
REINSERTION = dict(type='TokenReinsertion')
PYRAMID = dict(type='SimpleFeaturePyramid', in_channels=192, in_stride=8)


def config(where='model', **model):
    model = {'backbone': BACKBONE, 'neck': [REINSERTION, PYRAMID], **model}
    return Config(dict(model=model if where == 'model' else dict(detector=model)))


@pytest.mark.parametrize('where', ['model', 'model.detector'])
@pytest.mark.parametrize(
    'model, words',
    [
        (
            dict(backbone=dict(BACKBONE, depth=50, num_stages=4)),
            r'backbone has depth, num_stages, .*_delete_=True is m',
        ),
        (dict(backbone=dict(BACKBONE, type=CroprViT, depth=50)), r'backbone has depth, which'),
        (dict(pretrained='open-mmlab://resnet50'), r"pretrained='open-mmlab://resnet50' .* set \w.*\.pretrained=None"),
        (dict(neck=[REINSERTION, dict(PYRAMID, in_stride=16)]), r'neck\[1\].in_stride=16, but backbone.patch_size=8'),
        (
            dict(neck=[REINSERTION, dict(type='StandInPyramid', in_channels=192, out_channels=[4], strides=[4])]),
            r'in_stride=16, .* set in_stride=8',
        ),
        (
            dict(neck=REINSERTION, auxiliary_head=dict(in_index=2)),
            r'auxiliary_head.in_index=2, but neck gives 1 map; .*auxiliary_head=None',
        ),
        (dict(neck=[REINSERTION], decode_head=dict(in_index=3)), r'decode_head.in_index=3, but neck gives 1 map;'),
        (
            dict(auxiliary_head=[dict(in_index=1), dict(in_index=[0, 5])]),
            r'auxiliary_head\[1\].in_index=\[0, 5\], but neck gives 5 maps; 0 to 4',
        ),
        *[
            (
                dict(backbone=dict(BACKBONE, pruning=dict(fusion='logits')), neck=neck, decode_head=dict(type=head)),
                rf"backbone.pruning.fusion='logits' with \w.*decode_head.type='{head}'; it takes .*num_classes=…",
            )
            for neck, head in [
                (dict(REINSERTION, num_classes=3), 'FCNHead'),
                (REINSERTION, 'LogitFusionHead'),
                ([dict(REINSERTION, num_classes=3), PYRAMID], 'LogitFusionHead'),
            ]
        ],
    ],
)
def test_what_is_left_of_the_old_backbone_is_named(where, model, words):
    with pytest.raises(ValueError, match=rf'^{where}\..*{words}'):
        check_config(config(where, **model))


def test_early_exit_with_its_neck_and_head_passes():
    backbone = dict(BACKBONE, pruning=dict(fusion='logits'))
    head = dict(type='LogitFusionHead', head=dict(type='FCNHead'))
    check_config(config(backbone=backbone, neck=dict(REINSERTION, num_classes=3), decode_head=head))


class Wide(CroprViT):
    def __init__(self, depth, **settings):
        super().__init__(**settings)


@pytest.mark.parametrize(
    'model',
    [
        {},
        dict(pretrained=None, decode_head=dict(in_index=[0, 1, 2, 3]), auxiliary_head=dict(in_index=-1)),
        dict(backbone=dict(type='ResNet', depth=50), pretrained='torchvision://resnet50', neck=dict(type='FPN')),
        dict(backbone=dict(BACKBONE, type=Wide, depth=3)),
        dict(backbone=dict(BACKBONE, _scope_='mmseg')),  # a key of mmengine's registries
        dict(backbone=dict(BACKBONE, out_indices=(2, 5)), neck=REINSERTION, decode_head=dict(in_index=1)),
        dict(neck=[REINSERTION, dict(type='Mine')], decode_head=dict(in_index=7)),
        dict(neck=[dict(type='Mine'), dict(PYRAMID, in_stride=16)], decode_head=[dict(num_classes=3)]),
    ],
)
def test_what_is_complete_or_not_ours_passes(model):
    check_config(config(**model))
    check_config(Config(dict(a=1)))


def test_a_missing_import_is_said():
    assert "custom_imports=dict(imports=['cropr_mm']) is missing" in config_warnings(config())[0]
    imported = config()
    imported.custom_imports = dict(imports=['my_package'])  # which may import it
    assert not config_warnings(imported)
    assert not config_warnings(config(backbone=dict(BACKBONE, type=CroprViT)))
    assert not config_warnings(config(backbone=dict(type='ResNet')))


# --- classes and ignored labels -------------------------------------------------------------------------------------


def head(**values):
    module = nn.Module()
    for name, value in values.items():
        setattr(module, name, value)
    return module


def model(pruner=None, **heads):
    settings = pruner or dict(type='DifficultyPruner', num_classes=3)
    parts = nn.Module()
    parts.backbone = small_vit(pruning=dict(pruner=settings, rate=4))
    for name, part in heads.items():
        setattr(parts, name, part)
    return parts


def several(*heads):
    return nn.ModuleList(heads)


DIFFERENT = r'^backbone\.pruning\.pruner\.num_classes=3, but {}\.num_classes=9: both learn from the same labels'


@pytest.mark.parametrize(
    'heads, name',
    [
        (dict(decode_head=head(num_classes=9)), 'decode_head'),
        (dict(decode_head=several(head(num_classes=9), head(num_classes=9))), 'decode_head'),
        (dict(bbox_head=head(num_classes=9)), 'bbox_head'),
        (dict(rpn_head=head(num_classes=1), roi_head=head(bbox_head=head(num_classes=9))), 'roi_head.bbox_head'),
        (dict(roi_head=head(bbox_head=several(head(num_classes=9), head(num_classes=9)))), 'roi_head.bbox_head'),
        (dict(head=head(num_classes=9)), 'head'),
    ],
)
def test_other_classes_than_the_head_are_said_once(heads, name):
    import re

    (message,) = label_warnings(model(**heads))
    assert re.search(DIFFERENT.format(re.escape(name)), message)
    (message,) = label_warnings(nn.ModuleDict(dict(detector=model(**heads))))
    assert message.startswith('detector.backbone.pruning.pruner.num_classes=3')


def test_keys_of_an_auxiliary_head():
    (message,) = label_warnings(model(cropr('PatchSegAuxHead'), decode_head=head(num_classes=9, ignore_index=255)))
    assert message.startswith('backbone.pruning.pruner.aux_head.num_classes=3')


def test_pixels_that_the_head_ignores_are_said():
    (message,) = label_warnings(model(decode_head=head(num_classes=3, ignore_index=0)))
    assert 'pruner.ignore_index=255, but decode_head.ignore_index=0' in message and 'set backbone.' in message


@pytest.mark.parametrize(
    'heads',
    [
        {},
        dict(decode_head=head(num_classes=3, ignore_index=255)),
        dict(decode_head=head(num_classes=3, out_channels=1, ignore_index=None)),
        dict(bbox_head=head(num_classes=1)),  # an RPN, which does not tell classes apart
        dict(bbox_head=head()),
        dict(roi_head=head(bbox_head=head(num_classes=9)), semantic_head=head(num_classes=53)),
        dict(panoptic_head=head(num_classes=133)),
        dict(decode_head=several(head(num_classes=3), head(num_classes=9))),
    ],
)
def test_differences_that_can_be_meant_are_not_said(heads):
    assert not label_warnings(model(**heads))


@pytest.mark.parametrize(
    'pruner', [dict(type='RandomPruner'), dict(type='DifficultyPruner', num_classes=4, deploy=True)]
)
def test_pruners_that_learn_no_classes_are_passed_over(pruner):
    if pruner.pop('deploy', False):
        pruned = model(pruner, decode_head=head(num_classes=9))
        pruned.backbone.switch_to_deploy()
    else:
        pruned = model(pruner, decode_head=head(num_classes=9))
    assert not label_warnings(pruned)
    assert not label_warnings(nn.Linear(2, 2))


@pytest.mark.parametrize('library, name', [('mmseg', 'fcn'), ('mmdet', 'mask-rcnn')])
def test_models_of_the_sample_configs_have_nothing_to_say(library, name):
    pytest.importorskip(library)
    from cropr_mm.cli.model import build_model
    from cropr_mm.utils.libraries import register_library

    from ..test_tools.conftest import CONFIGS

    cfg = Config.fromfile(str(CONFIGS / f'{name}_cropr-vit_sample.py'))
    register_library(cfg)
    check_config(cfg)
    built = build_model(cfg)
    assert not label_warnings(built) and not config_warnings(cfg)
    pruners = list(built.backbone.pruners.values())
    classes = pruners[0].aux_head.num_classes
    for pruner in pruners:
        pruner.aux_head.num_classes = classes + 1
    (message,) = label_warnings(built)
    assert f'num_classes={classes + 1}, but' in message and f'num_classes={classes}:' in message


# --- the optimizer --------------------------------------------------------------------------------------------------


def test_sgd_is_said_with_its_rate_before_warm_up():
    vit = model()
    optimizer = torch.optim.SGD(vit.parameters(), lr=0.01)
    optimizer.param_groups[0].update(lr=1e-5, initial_lr=0.01)
    (message,) = optimizer_warnings(vit, OptimWrapper(optimizer))
    assert message.startswith('optim_wrapper.optimizer: the optimizer is SGD at lr=0.01')
    assert optimizer_warnings(vit, OptimWrapperDict(one=OptimWrapper(optimizer)))


def test_other_optimizers_and_frozen_backbones_are_not():
    vit = model(decode_head=nn.Conv2d(16, 3, 1))
    assert not optimizer_warnings(vit, OptimWrapper(torch.optim.AdamW(vit.parameters(), lr=1e-4)))
    only_head = OptimWrapper(torch.optim.SGD(vit.decode_head.parameters(), lr=0.01))
    assert not optimizer_warnings(vit, only_head)
    sgd = OptimWrapper(torch.optim.SGD(vit.parameters(), lr=0.01))
    vit.backbone.requires_grad_(False)
    vit.backbone.pruners.requires_grad_(True)  # retrofit
    assert not optimizer_warnings(vit, sgd)


@pytest.mark.parametrize('start', [warn_before_training, TrainingChecks().before_train])
def test_both_go_to_the_log(start, caplog):
    vit = model(decode_head=head(num_classes=9))
    sgd = OptimWrapper(torch.optim.SGD(vit.parameters(), lr=0.01))
    with caplog.at_level(logging.WARNING):
        start(SimpleNamespace(model=vit, optim_wrapper=sgd, logger=logging.getLogger('checks')))
    assert [text.split(':')[0] for text in caplog.messages][1] == 'optim_wrapper.optimizer' and len(
        caplog.messages
    ) == 2


def test_the_arguments_of_a_backbone_are_known_unless_it_takes_any():
    class Fixed(CroprViT):
        def __init__(self, arch, img_size=32):
            super().__init__(arch, img_size)

    class Open(CroprViT):
        def __init__(self, extra=None, **kwargs):
            super().__init__(**kwargs)

    names = arguments_of(CroprViT)
    assert names[:2] == ['arch', 'img_size'] and {'pruning', 'init_cfg', 'window_size'} <= set(names)
    assert not {'self', 'args', 'kwargs'} & set(names)
    assert arguments_of(Fixed) == ['arch', 'img_size']
    assert arguments_of(Open) is None  # what it does with the others is its own business
