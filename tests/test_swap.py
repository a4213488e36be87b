"""A stock config with its backbone swapped: same maps, same heads, and a config that can be written down."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from cropr_mm import CroprViT, swap_backbone
from cropr_mm.cli.model import build_model
from cropr_mm.engine.checks import ADAMW
from cropr_mm.utils.checks import is_type

ROOT = Path(__file__).resolve().parents[1]
ARCH = dict(family='vit', embed_dim=32, depth=4, num_heads=2)
PRUNED = dict(arch=ARCH, img_size=64, pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=19), rate=2))
DENSE = dict(arch=ARCH, img_size=64)
FCN = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024'
RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco'


def stock(name):
    library, file = name.split('::')
    module = pytest.importorskip(library)
    return Config.fromfile(str(Path(module.__file__).parent / '.mim' / 'configs' / f'{file}.py'))


@pytest.fixture
def log(monkeypatch):
    """What swap_backbone said."""
    messages = []
    monkeypatch.setattr('cropr_mm.swap.print_log', lambda message, **_: messages.append(message))
    return messages


def plain(settings):
    return settings.to_dict() if isinstance(settings, (Config, ConfigDict)) else settings


@pytest.mark.parametrize(
    'name',
    [
        FCN,
        'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64',
        'mmseg::bisenetv1/bisenetv1_r18-d32-in1k-pre_4xb4-160k_cityscapes-1024x1024',
        'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024',
        'mmseg::icnet/icnet_r18-d8-in1k-pre_4xb2-160k_cityscapes-832x832',
        RETINANET,
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco',
        'mmdet::detr/detr_r18_8xb2-500e_coco',
    ],
)
def test_maps_have_the_channels_and_sizes_of_the_old_ones(name):
    """On images that the function has not tried."""
    cfg = stock(name)
    swapped = swap_backbone(cfg, DENSE)
    images = torch.randn(1, 3, 192, 320)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        settings = {k: v for k, v in cfg.model.backbone.items() if k not in ('init_cfg', 'pretrained')}
        old = MODELS.build(settings)
        old.eval()
        neck = MODELS.build(swapped.model.neck[:2]).eval()
        maps = neck(MODELS.build(swapped.model.backbone).eval()(images))
        expected = old(images)
    tolerance = 1 if 'icnet' in name else 0  # halves the image by resizing, which rounds in its own way
    assert [m.shape[1] for m in maps] == [m.shape[1] for m in expected]
    for ours, theirs in zip(maps, expected):
        assert all(abs(a - b) <= tolerance for a, b in zip(ours.shape[2:], theirs.shape[2:]))


@pytest.mark.parametrize('name', [FCN, RETINANET, 'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco'])
def test_the_rest_of_the_model_is_untouched(name):
    cfg = stock(name)
    before = cfg.pretty_text
    swapped = swap_backbone(cfg, PRUNED)
    assert cfg.pretty_text == before
    old_neck = cfg.model.get('neck') or []
    assert swapped.model.neck[2:] == (old_neck if isinstance(old_neck, list) else [old_neck])
    ours, theirs = plain(swapped.model), plain(cfg.model)
    for model in (ours, theirs):
        for key in ('backbone', 'neck', 'pretrained'):
            model.pop(key, None)
    assert ours == theirs
    for key in ('train_dataloader', 'train_cfg', 'param_scheduler', 'default_hooks'):
        assert plain(swapped.get(key)) == plain(cfg.get(key))


def test_the_backbone_is_plain_and_takes_options():
    swapped = swap_backbone(stock(FCN), PRUNED)
    assert plain(swapped.model.backbone) == {'type': 'CroprViT', **PRUNED}
    assert 'pretrained' not in swapped.model
    swapped.merge_from_dict({'model.backbone.pruning.rate': 3})
    assert build_model(swapped).backbone.schedule.rate == 3
    assert PRUNED['pruning']['rate'] == 2


def test_it_can_be_written_down_and_read_again(tmp_path):
    swapped = swap_backbone(stock(RETINANET), PRUNED)
    swapped.dump(str(tmp_path / 'swapped.py'))
    read = Config.fromfile(str(tmp_path / 'swapped.py'))
    assert plain(read) == plain(swapped)
    model = build_model(read)
    assert isinstance(model.backbone, CroprViT)
    with torch.no_grad():
        assert [m.shape[-1] for m in model.extract_feat(torch.randn(1, 3, 64, 64))] == [8, 4, 2, 1, 1]


@pytest.mark.parametrize(
    'before, after',
    [
        (None, ['CroprHook']),
        ([dict(type='EMAHook')], ['EMAHook', 'CroprHook']),
        ([dict(type='CroprHook', ramp=0.2), dict(type='EMAHook')], ['CroprHook', 'EMAHook']),
        ([dict(type='mmengine.CroprHook')], ['mmengine.CroprHook']),
    ],
)
def test_the_hook_joins_those_that_are_there(before, after):
    cfg = stock(FCN)
    if before is not None:
        cfg.custom_hooks = before
    hooks = swap_backbone(cfg, PRUNED).custom_hooks
    assert [hook['type'] for hook in hooks] == after
    assert hooks[: len(before or [])] == (before or [])


def test_a_dense_backbone_needs_no_hook():
    swapped = swap_backbone(stock(FCN), dict(DENSE, pruning=None))
    assert not swapped.get('custom_hooks')
    assert swapped.model.backbone.pruning is None


@pytest.mark.parametrize(
    'before, after',
    [
        (None, dict(imports=['cropr_mm'])),
        (dict(imports='mmengine'), dict(imports=['mmengine', 'cropr_mm'])),
        (
            dict(imports=['mmengine'], allow_failed_imports=True),
            dict(imports=['mmengine', 'cropr_mm'], allow_failed_imports=True),
        ),
        (dict(imports=['cropr_mm', 'mmengine']), dict(imports=['cropr_mm', 'mmengine'])),
    ],
)
def test_the_package_is_imported_once(before, after):
    cfg = stock(FCN)
    if before is not None:
        cfg.custom_imports = before
    assert plain(swap_backbone(cfg, DENSE)).get('custom_imports') == after


def test_random_numbers_go_on_as_they_were():
    cfg = stock(FCN)
    state = torch.get_rng_state()
    swap_backbone(cfg, PRUNED)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backbone_made_for_one_size_of_images():
    cfg = stock('mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640')
    cfg.model.backbone.update(num_layers=4, out_indices=[0, 1, 2, 3])  # a third of the time
    swapped = swap_backbone(cfg, DENSE)
    assert swapped.model.neck[1].out_channels == [768] * 4 and swapped.model.neck[1].strides == [16] * 4
    assert swapped.model.neck[2].type == 'Feature2Pyramid'


@pytest.mark.parametrize('norm', ['SyncBN', 'MMSyncBN', 'GN'])
def test_norms_that_ask_for_other_processes(norm):
    cfg = stock(RETINANET)
    cfg.model.backbone.norm_cfg = dict(type=norm, num_groups=8) if norm == 'GN' else dict(type=norm)
    assert swap_backbone(cfg, DENSE).model.neck[1].out_channels == [64, 128, 256, 512]


def test_class_tokens_beside_the_maps_become_their_means():
    swapped = swap_backbone(stock('mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512'), DENSE)
    assert swapped.model.neck[1].readout is True


def test_a_lone_map_in_evaluation_stays_one():
    cfg = stock('mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024')
    pyramid = swap_backbone(cfg, DENSE).model.neck[1]
    assert (pyramid.out_channels, pyramid.strides, pyramid.eval_level) == ([64, 128], [8, 8], 1)


def test_patches_of_14():
    swapped = swap_backbone(stock(FCN), dict(arch=ARCH, img_size=56, patch_size=14))
    assert swapped.model.neck[1].in_stride == 14
    with torch.no_grad():
        maps = build_model(swapped).extract_feat(torch.randn(1, 3, 56, 56))
    assert [m.shape[-1] for m in maps] == [14, 7, 7, 7]


def test_as_many_channels_in_the_images_as_the_config_says():
    cfg = stock(FCN)
    cfg.model.backbone.in_channels = 4
    assert build_model(swap_backbone(cfg, dict(DENSE, in_channels=4))).backbone.patch_embed.proj.in_channels == 4
    with pytest.raises(ValueError, match=r'backbone\.in_channels=3; .*model\.backbone\.in_channels=4'):
        swap_backbone(cfg, DENSE)


# --- the optimizer and the rest ---------------------------------------------------------------------------------


def test_scorers_keep_the_full_rate_where_the_backbone_is_slowed_down():
    cfg = stock(FCN)
    keys = {
        'backbone': dict(lr_mult=0.1, decay_mult=0.5),
        'backbone.norm': dict(decay_mult=0.0),
        'backbone.layer1': dict(lr_mult=0.0),
        'query_embed': dict(lr_mult=1.0),
    }
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    custom = plain(swap_backbone(cfg, PRUNED).optim_wrapper)['paramwise_cfg']['custom_keys']
    assert custom == {
        **keys,  # those that name nothing any more are no concern of mmengine's
        'backbone.pruners': dict(lr_mult=1.0, decay_mult=0.5),
    }
    assert 'backbone.pruners' not in swap_backbone(cfg, DENSE).optim_wrapper.paramwise_cfg.custom_keys


@pytest.mark.parametrize('key', ['pruners', 'backbone.pruners'])
def test_a_rate_of_the_scorers_that_the_config_names_is_left(key):
    cfg = stock(FCN)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={key: dict(lr_mult=10.0)})
    custom = plain(swap_backbone(cfg, PRUNED).optim_wrapper)['paramwise_cfg']['custom_keys']
    assert custom == {key: dict(lr_mult=10.0)}


@pytest.mark.parametrize(
    'constructor, paramwise, rate',
    [
        ('LayerDecayOptimizerConstructor', dict(num_layers=12, layer_decay_rate=0.65), 0.65),
        ('LearningRateDecayOptimizerConstructor', dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6), 0.9),
    ],
)
def test_layer_decay_that_does_not_know_the_layers_is_replaced(log, constructor, paramwise, rate):
    from mmengine.optim import build_optim_wrapper

    cfg = stock(FCN)
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor=constructor,
        paramwise_cfg=paramwise,
    )
    swapped = swap_backbone(cfg, PRUNED)
    assert any(constructor in message for message in log)
    model = build_model(swapped)
    rates = {
        id(p): g['lr'] for g in build_optim_wrapper(model, swapped.optim_wrapper).param_groups for p in g['params']
    }
    assert rates[id(model.decode_head.conv_seg.weight)] == 1
    assert rates[id(model.backbone.blocks[3].mlp.fc1.weight)] == pytest.approx(rate)
    assert rates[id(model.backbone.patch_embed.proj.weight)] == pytest.approx(rate**5)


def test_skipped_maps_are_allowed_for_in_distributed_training():
    """RetinaNet's FPN begins at stride 8, so the pyramid's map at stride 4 gets no gradient."""
    swapped = swap_backbone(stock(RETINANET), DENSE)
    model = build_model(swapped)
    sum(level.sum() for level in model.extract_feat(torch.randn(1, 3, 64, 64))).backward()
    assert any(p.grad is None for p in model.neck.parameters())
    assert swapped.find_unused_parameters is True
    cfg = stock(RETINANET)
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel')
    assert swap_backbone(cfg, DENSE).model_wrapper_cfg.find_unused_parameters is True


def test_what_stays_and_may_surprise_is_said(log):
    cfg = stock('mmdet::retinanet/retinanet_r50-caffe_fpn_1x_coco')
    cfg.load_from = 'retinanet.pth'
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint='retinanet.pth')
    swap_backbone(cfg, dict(DENSE, out_indices=(1, 3)))
    said = '\n'.join(log)
    for words in (
        "load_from='retinanet.pth'",
        'model.init_cfg',
        'has bgr_to_rgb=False, mean=[103.53',
        'the pyramid reads block 3 alone',
    ):
        assert words in said
    log.clear()
    swap_backbone(stock('mmdet::dino/dino-4scale_r50_8xb2-12e_coco'), DENSE)
    assert not log
    swap_backbone(stock('mmdet::yolox/yolox_tiny_8xb8-300e_coco'), DENSE)
    assert 'model.data_preprocessor has bgr_to_rgb=None, mean=None, std=None' in log[0]


@pytest.mark.parametrize('name, lr', [(FCN, 0.01), (RETINANET, 0.01), ('mmdet::yolox/yolox_tiny_8xb8-300e_coco', 0.01)])
def test_the_optimizer_of_a_resnet_is_said(name, lr, log):
    swapped = swap_backbone(stock(name), DENSE)
    (said,) = (message for message in log if 'SGD' in message)
    assert f'optim_wrapper.optimizer: the optimizer is SGD at lr={lr}' in said
    namespace = {}
    exec(ADAMW, namespace)  # what it says to write is what ends it
    swapped.merge_from_dict(dict(optim_wrapper=namespace['optim_wrapper']))
    assert swapped.optim_wrapper.optimizer.to_dict() == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    assert ADAMW in said


# --- where the backbone is --------------------------------------------------------------------------------------


def test_a_detector_inside_another_model():
    cfg = stock('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco')
    backbone = dict(DENSE, pruning=dict(pruner=dict(type='RandomPruner'), rate=2))
    swapped = swap_backbone(cfg, backbone)
    assert is_type(swapped.model.detector.backbone, 'CroprViT')
    assert [neck.type for neck in swapped.model.detector.neck] == ['TokenReinsertion', 'StandInPyramid', 'FPN']
    with pytest.raises(ValueError, match=r'model\.semi_train_cfg: SoftTeacher runs its backbone several times'):
        swap_backbone(cfg, PRUNED)


def test_types_may_be_classes():
    """As in mmengine's configs in pure Python."""
    models = pytest.importorskip('mmdet.models')
    cfg = stock(RETINANET)
    cfg.model.type, cfg.model.backbone.type = models.RetinaNet, models.ResNet
    model = build_model(swap_backbone(cfg, dict(PRUNED, type=CroprViT)))
    assert isinstance(model, models.RetinaNet) and isinstance(model.backbone, CroprViT)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'backbone, words',
    [
        ('vit-base', r"backbone='vit-base'; a dict with the arguments of CroprViT"),
        (dict(img_size=64), r'backbone has no arch; valid are arch, img_size'),
        (dict(DENSE, depth=3, width=2), r'backbone has unknown keys depth, width; valid are arch, img_size'),
        (dict(DENSE, type='ResNet'), r"backbone\.type='ResNet'; 'CroprViT' is expected"),
        (dict(DENSE, patch_size=0), r'patch_size=0'),
        (dict(DENSE, pruning=dict(pruner=dict(type='RandomPruner'), rate=99)), r'rate=99'),
    ],
)
def test_bad_settings_of_the_new_backbone(backbone, words):
    with pytest.raises(ValueError, match=words):
        swap_backbone(stock(FCN), backbone)


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda cfg: cfg.pop('model'), 'the config has no model'),
        (lambda cfg: cfg.model.pop('backbone'), r'no backbone at model\.backbone or .*; model has type, data_preproc'),
        (lambda cfg: cfg.model.update(head=cfg.model.pop('backbone')), 'no backbone at'),
        (
            lambda cfg: cfg.model.update(encoder=dict(backbone=cfg.model.pop('backbone'))),
            r'those at model\.encoder\.back',
        ),
        (lambda cfg: cfg.model.update(backbone='r18'), r"model\.backbone='r18'; a dict with a type"),
        (lambda cfg: cfg.model.backbone.pop('type'), r'model\.backbone has no type'),
        (lambda cfg: cfg.model.backbone.update(type='CroprViT'), r"type is 'CroprViT' already"),
        (lambda cfg: cfg.model.backbone.update(type='Nonesuch'), r"type='Nonesuch' cannot be built and run here"),
        (lambda cfg: cfg.model.backbone.update(depth=19), r"type='ResNetV1c' cannot be built .*invalid depth 19"),
    ],
)
def test_configs_without_a_backbone_to_replace(change, words):
    cfg = stock(FCN)
    change(cfg)
    with pytest.raises(ValueError, match=words):
        swap_backbone(cfg, DENSE)


def test_a_dict_is_no_config():
    with pytest.raises(TypeError, match=r'swap_backbone got a dict; a Config is expected, as Config\.fromfile gives'):
        swap_backbone(dict(model={}), DENSE)


@MODELS.register_module()
class OddBackbone(torch.nn.Module):
    """Gives whatever the test asks for."""

    def __init__(self, gives):
        super().__init__()
        self.gives = gives

    def forward(self, x):
        small = x[:, :, ::4, ::4]
        other = small[:, :1] if self.training else small[:, :2]
        return {
            'image': (x, small),
            'dict': dict(maps=small),
            'vectors': (small.mean((2, 3)),),
            'copies': (torch.cat([small, small]),),
            'fixed': (small[:, :, :1, :1],),
            'changing': (other,),
            'ambiguous': (small, small) if self.training else small,
        }[self.gives]


@pytest.mark.parametrize(
    'gives, words',
    [
        ('image', 'hands on the image itself'),
        ('dict', 'returns a dict of .*; a tuple of feature maps is expected'),
        ('vectors', r'returns a tuple of \(2, 3\); a tuple of feature maps is expected'),
        ('copies', r'returns feature maps \(4, 3, 16, 16\) in training for a batch of 2'),
        ('fixed', 'whose size does not follow the image'),
        ('changing', 'in training and other feature maps in evaluation'),
        ('ambiguous', 'one feature map .* in evaluation and .* one of that shape among them is expected'),
    ],
)
def test_backbones_that_give_no_fixed_set_of_maps(gives, words):
    cfg = stock(FCN)
    cfg.model.backbone = dict(type='mmengine.OddBackbone', gives=gives)
    with pytest.raises(ValueError, match=rf"model\.backbone\.type='mmengine\.OddBackbone' .*{words}"):
        swap_backbone(cfg, DENSE)


def test_a_model_that_takes_no_neck_is_named():
    cfg = stock('mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019')
    with pytest.raises(ValueError, match=r"model\.type='Mask2FormerVideo' takes no neck"):
        swap_backbone(cfg, DENSE)
