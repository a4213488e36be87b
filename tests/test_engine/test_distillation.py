"""A dense model teaches the same model with fewer tokens, and no label is read."""

import math
from collections import OrderedDict

import pytest
import torch
from helpers import cropr, seg_sample, small_vit
from hypothesis import given
from hypothesis import strategies as st
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from cropr_mm import Distilled, TokenReinsertion
from cropr_mm.checkpoint import load_strictly
from cropr_mm.engine.distillation import divergence, find_head, unexplained

TOME, CROPR = dict(type='ToMeReducer'), cropr('PatchSegAuxHead')


class Head(nn.Sequential):
    """Reads the first level, as heads do."""

    def forward(self, maps):
        return super().forward(maps[0])


class Model(BaseModel):
    """As much of an mm model as is taught: a backbone, a neck and a head with dropout and statistics."""

    def __init__(self, backbone, head='decode_head'):
        super().__init__(ImgDataPreprocessor())
        self.backbone = small_vit(**backbone)
        self.neck = TokenReinsertion()
        self.add_module(head, Head(nn.BatchNorm2d(16), nn.Dropout2d(0.5), nn.Conv2d(16, 3, 1)))

    def extract_feat(self, inputs):
        return self.neck(self.backbone(inputs))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode != 'loss', 'a loss of the model itself reads labels'
        return self.extract_feat(inputs)


def model_config(pruner=TOME, **settings):
    backbone = dict(drop_path_rate=0.5, pruning=dict(pruner=pruner, **{'rate': 8, **settings}))
    return dict(type=Model, backbone=backbone)


@pytest.fixture
def checkpoint(tmp_path):
    """The weights of a dense model."""
    dense = MODELS.build(dict(model_config(), backbone=dict(pruning=None)))
    dense.decode_head[0].running_mean.normal_()
    path = tmp_path / 'dense.pth'
    torch.save(dict(state_dict=dense.state_dict()), path)
    return str(path)


def distilled(checkpoint, *args, **settings):
    model = Distilled(model_config(*args, **settings), checkpoint)
    model.init_weights()
    return model.train()


def batch(samples=None):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 24, 24, generator=generator) for _ in range(2)]
    return dict(inputs=images, data_samples=samples or [BaseDataElement(metainfo=dict(img_shape=(24, 24)))] * 2)


def train(model, data, steps=1):
    optimizer = OptimWrapper(torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3))
    return [{k: float(v) for k, v in model.train_step(data, optimizer).items()} for _ in range(steps)]


def copies(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('pruner', [TOME, CROPR, dict(type='VariancePruner')], ids=lambda pruner: pruner['type'])
def test_both_begin_with_the_checkpoint_and_the_teacher_stays(pruner, checkpoint):
    model = distilled(checkpoint, pruner)
    weights = torch.load(checkpoint)['state_dict']
    assert same(weights, model.teacher.state_dict())
    before = copies(model.student)
    assert all(torch.equal(before[name], value) for name, value in weights.items())
    train(model, batch(), steps=3)
    assert same(weights, model.teacher.state_dict())
    after = model.student.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {'backbone.blocks.0.attn.qkv.weight', 'decode_head.2.weight'} <= changed
    assert not any('running' in name for name in changed)


def test_it_learns_and_no_label_is_read(checkpoint):
    labelled = batch([seg_sample(torch.randint(3, (24, 24))) for _ in range(2)])
    pruner = dict(type='VariancePruner')
    none, labels = (train(distilled(checkpoint, pruner), data, steps=20) for data in (batch(), labelled))
    assert none == labels
    assert none[-1]['loss'] < 0.5 * none[0]['loss']
    assert none[0].keys() == {'loss', 'loss_features', 'loss_logits'}


@pytest.mark.parametrize('settings, zero', [(dict(rate=0), True), (dict(rate=8), False)])
def test_the_loss_is_0_where_nothing_is_pruned(checkpoint, settings, zero):
    (losses,) = train(distilled(checkpoint, **settings), batch())
    assert all((value == pytest.approx(0, abs=1e-9)) == zero for value in losses.values())


def test_pruners_learn_by_what_the_teacher_predicts(checkpoint):
    model = distilled(checkpoint, CROPR)
    data = model.data_preprocessor(batch(), True)
    losses = model(**data, mode='loss')
    assert losses.keys() == {'loss_features', 'loss_logits', 'cropr.loss_aux', 'cropr.aux.0', 'cropr.aux.1',
                             'cropr.aux.2'}  # fmt: skip
    logits = model.teacher.decode_head(model.teacher.extract_feat(data['inputs']))
    scores = nn.functional.interpolate(logits, (24, 24), mode='bilinear', align_corners=False)
    samples = [seg_sample(label) for label in scores.argmax(1)]
    model.student.extract_feat(data['inputs'])
    by_hand = model.student.backbone.aux_losses(samples)['loss_aux']
    assert float(by_hand) == pytest.approx(float(losses['cropr.loss_aux']), rel=1e-5)
    losses['cropr.loss_aux'].backward()
    assert all(float(p.queries.grad.abs().sum()) > 0 for p in model.student.backbone.pruners.values())


@pytest.mark.parametrize('pruner', [TOME, CROPR], ids=lambda pruner: pruner['type'])
def test_the_student_alone_is_an_ordinary_checkpoint(checkpoint, pruner):
    model = distilled(checkpoint, pruner)
    train(model, batch())
    other = MODELS.build(model_config(pruner))
    load_strictly(other, model.student.state_dict(), 'the student')
    images = torch.rand(1, 3, 24, 24)
    assert torch.equal(other.eval()(images)[0], model.eval()(images, mode='predict')[0])


def test_pruners_of_the_checkpoint_are_taken_over(checkpoint, tmp_path):
    pruned = MODELS.build(model_config(CROPR))
    weights = OrderedDict(pruned.state_dict())
    torch.save(dict(state_dict=weights), tmp_path / 'pruned.pth')
    model = distilled(str(tmp_path / 'pruned.pth'), CROPR)
    assert same(weights, model.student.state_dict())
    assert model.teacher.state_dict().keys() == {name for name in weights if 'pruners' not in name}


def test_a_checkpoint_that_leaves_something_random_is_refused(checkpoint, tmp_path):
    weights = torch.load(checkpoint)['state_dict']
    del weights['decode_head.2.bias']
    torch.save(dict(state_dict=weights), tmp_path / 'short.pth')
    with pytest.raises(ValueError, match=r'short.pth does not fit .* missing: decode_head.2.bias'):
        distilled(str(tmp_path / 'short.pth'))


@pytest.mark.parametrize(
    'student, message',
    [
        (dict(model_config(), backbone=dict(pruning=None)), r'Distilled.student.backbone.pruning=None; the pruning'),
        (dict(model_config(CROPR), head='roi_head'), r'the pruners learn from labels, and a Model has no decode_head'),
    ],
)
def test_what_cannot_be_taught_is_named(student, message):
    with pytest.raises(ValueError, match=message):
        Distilled(student, 'unused.pth')


def test_a_detector_is_taught_by_its_maps_alone(tmp_path):
    config = dict(model_config(), head='roi_head')
    torch.save(MODELS.build({**config, 'backbone': dict(pruning=None)}).state_dict(), tmp_path / 'dense.pth')
    model = Distilled(config, str(tmp_path / 'dense.pth'))
    model.init_weights()
    (losses,) = train(model.train(), batch())
    assert losses.keys() == {'loss', 'loss_features'} and losses['loss_features'] > 0


class NeedsSamples(nn.Module):
    def forward(self, maps, data_samples):
        return maps


@pytest.mark.parametrize(
    'head, found', [(nn.Linear(2, 2), True), (NeedsSamples(), False), (nn.ModuleList([nn.Linear(2, 2)]), False)]
)
def test_heads_that_make_logits_by_themselves(head, found):
    holder = nn.Module()
    holder.head = head
    assert find_head(holder) is (head if found else None)
    assert find_head(holder, ['decode_head']) is None


@given(st.integers(0, 2**16))
def test_losses_are_what_loops_give(seed):
    generator = torch.Generator().manual_seed(seed)
    own, goal = torch.randn(2, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    values = goal.flatten().tolist()
    mean = sum(values) / len(values)
    error = sum((a - b) ** 2 for a, b in zip(own.flatten().tolist(), values))
    assert float(unexplained(own, goal)) == pytest.approx(error / sum((v - mean) ** 2 for v in values), rel=1e-4)
    total = 0.0
    for b in range(2):
        for y in range(2):
            for x in range(2):
                p, q = ([math.exp(v) for v in logits[b, :, y, x].tolist()] for logits in (goal, own))
                p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
                total += sum(a * math.log(a / b) for a, b in zip(p, q))
    assert float(divergence(own, goal)) == pytest.approx(total / 8, rel=1e-4, abs=1e-6)
    assert float(unexplained(goal, goal)) == 0 and float(unexplained(goal.mean().expand_as(goal), goal)) == (
        pytest.approx(1)
    )
