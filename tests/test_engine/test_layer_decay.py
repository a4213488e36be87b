"""Learning rate and weight decay of every parameter, against rules written out by name."""

import re

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, PolyLR, build_optim_wrapper
from torch import nn

from cropr_mm import TokenReinsertion
from cropr_mm.engine import layer_decay

LR, DECAY, RATE = 1e-3, 0.05, 0.5
PRUNERS = [
    cropr('PatchSegAuxHead'),
    cropr(num_heads=2, qkv_proj=True, pre_norm=True),
    dict(type='DifficultyPruner', num_classes=3),
]


def wrapper(model, paramwise=(), optimizer=(), **settings):
    return build_optim_wrapper(
        model,
        dict(
            optimizer=dict(dict(type='AdamW', lr=LR, weight_decay=DECAY), **dict(optimizer)),
            constructor='CroprLayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(dict(layer_decay_rate=RATE), **dict(paramwise)),
            **settings,
        ),
    )


class Model(nn.Module):
    """A segmentor's parts, the neck with a mask token and the head with a norm, queries and a shared layer."""

    def __init__(self, **settings):
        super().__init__()
        self.backbone = small_vit(**settings)
        self.neck = nn.Sequential(TokenReinsertion('mask_token', embed_dim=16), nn.Conv2d(16, 8, 1))
        self.head = nn.ModuleDict(dict(norm=nn.BatchNorm2d(8), fc=nn.Linear(8, 3), query_embed=nn.Embedding(5, 8)))
        self.head['tied'] = self.head['fc']

    def forward(self, images):
        reinsert, project = self.neck
        dense = project(*reinsert(self.backbone(images)))
        return self.head['fc'](self.head['norm'](dense).mean((2, 3)) + self.head['query_embed'].weight.mean(0))


def by_the_rules(name, parameter, home='backbone.', depth=5):
    """(lr, weight decay) from the name alone."""
    layer = depth + 1
    inside = name[len(home) :] if name.startswith(home) else None
    if inside is not None:
        block = re.match(r'blocks\.(\d+)\.', inside)
        if block:
            layer = int(block[1]) + 1
        elif re.match(r'patch_embed\.|cls_token$|reg_token$|pos_embed$', inside):
            layer = 0
        else:
            assert re.match(r'norm\.|pruners\.', inside), name
    free = re.search(r'bias$|norm\w*\.weight$|gamma$|mask_token$', name) or (
        inside is not None and re.search(r'queries$|cls_token$|reg_token$|pos_embed$', inside)
    )
    return LR * RATE ** (depth + 1 - layer), 0.0 if free else DECAY


def settings_of(optim_wrapper):
    """Parameter → its group; no parameter is in two."""
    found = [(p, group) for group in optim_wrapper.optimizer.param_groups for p in group['params']]
    assert len({id(p) for p, _ in found}) == len(found)
    return {id(p): (group['lr'], group['weight_decay']) for p, group in found}


def check(optim_wrapper, model, home):
    found = settings_of(optim_wrapper)
    for name, parameter in model.named_parameters():
        expected = by_the_rules(name, parameter, home)
        assert found.pop(id(parameter)) == pytest.approx(expected), name
    assert not found


@pytest.mark.parametrize('pruner', PRUNERS, ids=lambda p: p['type'])
@pytest.mark.parametrize('family', ['vit', 'eva02', 'dinov2', 'dinov3'])
def test_every_parameter_is_where_the_rules_put_it(family, pruner):
    model = Model(family=family, pruning=dict(pruner=pruner, rate=8))
    check(wrapper(model), model, 'backbone.')


@pytest.mark.parametrize(
    'place, home',
    [
        (lambda m: m.backbone, ''),
        (lambda m: nn.Sequential(m.backbone, m.head), '0.'),
        (lambda m: nn.ModuleDict(dict(detector=m, backbone_projection=nn.Linear(3, 3))), 'detector.backbone.'),
    ],
    ids=['alone', 'in a sequence', 'deeper'],
)
def test_the_backbone_may_sit_anywhere(place, home):
    model = place(Model())
    check(wrapper(model), model, home)


def test_backbones_of_different_depth_each_count_for_themselves():
    model = nn.ModuleDict(dict(a=small_vit(), b=small_vit(arch=dict(depth=3)), c=nn.Linear(2, 2)))
    found = settings_of(wrapper(model))
    lr = {name: found[id(parameter)][0] for name, parameter in model.named_parameters()}
    assert lr['a.cls_token'] == LR * RATE**6 and lr['b.cls_token'] == LR * RATE**4
    assert lr['a.blocks.4.mlp.fc1.weight'] == lr['b.blocks.2.mlp.fc1.weight'] == LR * RATE
    assert lr['a.norm.weight'] == lr['b.norm.weight'] == lr['c.weight'] == LR


def test_frozen_parameters_stay_out():
    model = Model(frozen_stages=2)
    found = settings_of(wrapper(model))
    for name, parameter in model.named_parameters():
        assert (id(parameter) in found) == parameter.requires_grad, name
    assert len(found) < len(list(model.parameters()))


def test_model_wrappers_change_nothing():
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = Model()
        check(wrapper(MMDistributedDataParallel(model)), model, 'backbone.')
    finally:
        torch.distributed.destroy_process_group()


def test_other_optim_wrappers(monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    model = Model()
    mixed = wrapper(model, type='AmpOptimWrapper', accumulative_counts=4, clip_grad=dict(max_norm=1.0))
    assert isinstance(mixed, AmpOptimWrapper) and mixed._accumulative_counts == 4
    check(mixed, model, 'backbone.')


def test_a_step_moves_early_layers_less():
    """Adam's first step is lr times the gradient's sign, whatever the gradient's size."""
    model = Model().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optim_wrapper = wrapper(model, optimizer=dict(weight_decay=0.0, eps=1e-20))
    schedule = PolyLR(optim_wrapper, power=1.0, eta_min=0.0, begin=0, end=5, by_epoch=False)
    optim_wrapper.update_params(model(torch.randn(2, 3, 24, 24)).square().sum())
    for name, parameter in model.named_parameters():
        step = (parameter.detach() - before[name]).abs().max().item()
        if step:  # not the mask token, as nothing is missing
            assert step == pytest.approx(by_the_rules(name, parameter)[0], rel=1e-2), name
    schedule.step()
    for group in optim_wrapper.optimizer.param_groups:
        assert group['lr'] == pytest.approx(0.75 * group['initial_lr'])


def test_custom_keys_go_on_top():
    model = Model()
    keys = {
        'head': dict(lr_mult=10),
        'head.fc': dict(lr_mult=3, betas=(0.5, 0.9)),
        'blocks.1.mlp': dict(lr_mult=2),
        'pos_embed': dict(decay_mult=1.0),
        'query_embed': dict(decay_mult=0.0),
    }
    optim_wrapper = wrapper(model, paramwise=dict(custom_keys=keys))
    found = settings_of(optim_wrapper)
    own = {'head.norm.weight': 10, 'head.norm.bias': 10, 'head.fc.weight': 3, 'head.fc.bias': 3}
    for name, parameter in model.named_parameters():
        lr, decay = by_the_rules(name, parameter)
        lr *= own.get(name, 2 if name.startswith('backbone.blocks.1.mlp.') else 1)
        decay = {'backbone.pos_embed': DECAY, 'head.query_embed.weight': 0}.get(name, decay)
        assert found[id(parameter)] == pytest.approx((lr, decay)), name
    betas = {id(p): g['betas'] for g in optim_wrapper.optimizer.param_groups for p in g['params']}
    assert betas[id(model.head['fc'].weight)] == (0.5, 0.9) != betas[id(model.head['norm'].weight)]


WHERE = r'optim_wrapper\.paramwise_cfg'


@pytest.mark.parametrize(
    'paramwise, optimizer, words',
    [
        (dict(layer_decay_rate=0), {}, WHERE + r'\.layer_decay_rate=0; a number above 0 and at most 1'),
        (dict(layer_decay_rate=1.5), {}, WHERE + r'\.layer_decay_rate=1\.5'),
        (dict(layer_decay_rate=True), {}, WHERE + r'\.layer_decay_rate=True'),
        (dict(layer_decay_rate=None), {}, WHERE + r'\.layer_decay_rate=None'),
        (
            dict(num_layers=12, decay_rate=0.9),
            {},
            WHERE + r' has unknown keys decay_rate, num_layers; valid are layer_decay_rate, custom_keys',
        ),
        (dict(custom_keys={'head': dict(lr_mult='10')}), {}, WHERE + r"\.custom_keys\.head={'lr_mult': '10'}; a dict"),
        (dict(custom_keys={'head': 10}), {}, WHERE + r'\.custom_keys\.head=10; a dict is expected'),
        ({}, dict(lr=None), r'optim_wrapper\.optimizer\.lr=None; a number of 0 or more'),
        ({}, dict(weight_decay=-0.1), r'optim_wrapper\.optimizer\.weight_decay=-0\.1'),
    ],
)
def test_bad_settings_are_named(paramwise, optimizer, words):
    with pytest.raises(ValueError, match=words):
        wrapper(Model(), paramwise, optimizer)


def test_a_model_that_it_cannot_serve_is_named():
    with pytest.raises(ValueError, match=r'Linear has neither CroprViT nor PlainViT; set model\.backbone'):
        wrapper(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='no parameter of CroprViT requires a gradient'):
        wrapper(small_vit(frozen_stages=5))


def test_the_table_tells_what_is_where(monkeypatch):
    printed = []
    monkeypatch.setattr(layer_decay, 'print_log', lambda text, **_: printed.append(text))
    model = Model(pruning=dict(pruner=PRUNERS[0], rate=8))
    wrapper(model)
    (table,) = printed
    _title, header, *rows = table.splitlines()
    assert header.split() == ['layer', 'lr', 'weight', 'decay', 'tensors', 'parameters', 'what', 'is', 'in', 'it']
    cells = [row.split(maxsplit=5) for row in rows]
    assert [int(row[0]) for row in cells] == [layer for layer in range(7) for _ in range(2)]
    assert cells[0][1:3] == ['1.56e-05', '0.05'] and cells[0][5] == 'backbone.patch_embed'
    assert cells[1][5] == 'backbone.cls_token, backbone.pos_embed, backbone.patch_embed'
    assert [row[5] for row in cells[2:12:2]] == [f'backbone.blocks.{i}' for i in range(5)]
    assert cells[12][5] == 'backbone.pruners, neck, head'
    assert cells[13][5] == 'backbone.pruners, backbone.norm, neck, head'
    assert sum(int(row[3]) for row in cells) == len(list(model.parameters()))
    assert sum(int(row[4].replace(',', '')) for row in cells) == sum(p.numel() for p in model.parameters())

    monkeypatch.setattr(layer_decay, 'is_main_process', lambda: False)
    wrapper(model)
    assert len(printed) == 1
