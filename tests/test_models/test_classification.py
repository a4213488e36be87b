"""mmpretrain's stock classifier on a pruned backbone."""

import copy

import pytest
import torch
from helpers import cropr, liven, small_vit
from mmengine.optim import OptimWrapper
from parity import import_mmpretrain

from cropr_mm import CroprHook

CLASSES = 5
SMOOTHING = 0.1
AUGMENTS = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
PLANS = {
    'fusion': dict(rate=8),
    'one-shot': dict(keep={2: 0.2}, fusion=None),
    'no fusion': dict(rate=8, fusion=None),
}
HEADS = {
    'LinearClsHead': dict(type='LinearClsHead'),
    'VisionTransformerClsHead': dict(type='VisionTransformerClsHead', hidden_dim=8),
}


@pytest.fixture(scope='module')
def mmpretrain():
    return import_mmpretrain()


def classifier(plan='fusion', head='LinearClsHead', mode='cls', train_cfg=AUGMENTS):
    from mmpretrain.registry import MODELS

    aux = dict(type='ClsAuxHead', num_classes=CLASSES, label_smoothing=SMOOTHING)
    loss = dict(type='LabelSmoothLoss', label_smooth_val=SMOOTHING, num_classes=CLASSES)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=small_vit(pruning=dict(pruner=dict(type='CroprPruner', aux_head=aux), **PLANS[plan])),
            neck=dict(type='TokenPooling', mode=mode),
            head=dict(num_classes=CLASSES, in_channels=16, loss=loss, **HEADS[head]),
            data_preprocessor=dict(num_classes=CLASSES, mean=[127.5] * 3, std=[58.0] * 3),
            train_cfg=copy.deepcopy(train_cfg),
        )
    )
    return liven(model)


def batch(count=4):
    from mmpretrain.structures import DataSample

    images = [torch.randint(256, (3, 24, 24), dtype=torch.uint8) for _ in range(count)]
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(i % CLASSES) for i in range(count)])


@pytest.mark.parametrize('plan', PLANS)
@pytest.mark.parametrize('head, mode', [('LinearClsHead', 'cls'), ('LinearClsHead', 'avg'), (list(HEADS)[1], 'cls')])
def test_stock_heads_train_and_predict(mmpretrain, plan, head, mode):
    model = classifier(plan, head, mode)
    CroprHook().attach(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    log = model.train().train_step(batch(), optim)
    assert log['loss'].isfinite() and log['cropr.loss_aux'] > 0
    same = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert not same

    with torch.no_grad():
        results = model.eval().test_step(batch(3))
    assert [tuple(r.pred_score.shape) for r in results] == [(CLASSES,)] * 3
    for result in results:
        assert result.pred_score.sum().item() == pytest.approx(1, abs=1e-5)
        assert result.pred_label.item() == result.pred_score.argmax().item()


def test_the_total_is_the_main_loss_and_the_auxiliary_ones(mmpretrain):
    model = classifier().train()
    CroprHook().attach(model)
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'] + losses['cropr.loss_aux'])


def forward_with_aux(model, data):
    """Losses of a training step, and the auxiliary logits (B, C) of each module."""
    logits = []
    handles = [
        pruner.aux_head.register_forward_hook(lambda module, args, out: logits.append(out[:, 0]))
        for pruner in model.backbone.pruners.values()
    ]
    losses = model(**data, mode='loss')
    for handle in handles:
        handle.remove()
    return losses, logits


def test_auxiliary_heads_learn_the_mixed_labels_as_the_main_loss_does(mmpretrain):
    """mmpretrain's own loss is the reference; mixing happens before the model, in its data preprocessor."""
    model = classifier(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8))).train()
    CroprHook().attach(model)
    data = model.data_preprocessor(batch(), training=True)
    mixed = torch.stack([sample.gt_score for sample in data['data_samples']])
    assert ((mixed > 0).sum(dim=1) == 2).any() and torch.allclose(mixed.sum(dim=1), torch.ones(4))
    losses, logits = forward_with_aux(model, data)
    assert len(logits) == len(model.backbone.pruners) == 3
    for i, predicted in enumerate(logits):
        expected = model.head.loss_module(predicted, mixed, avg_factor=len(mixed))
        torch.testing.assert_close(losses[f'cropr.aux.{i}'], expected.detach())
        unmixed = torch.tensor([0, 1, 2, 3])
        assert not torch.isclose(expected, model.head.loss_module(predicted, unmixed, avg_factor=4))


def test_without_mixing_they_learn_the_labels(mmpretrain):
    model = classifier(train_cfg=None).train()
    CroprHook().attach(model)
    data = model.data_preprocessor(batch(), training=True)
    assert 'gt_score' not in data['data_samples'][0]
    losses, logits = forward_with_aux(model, data)
    for i, predicted in enumerate(logits):
        expected = model.head.loss_module(predicted, torch.tensor([0, 1, 2, 3]), avg_factor=4)
        torch.testing.assert_close(losses[f'cropr.aux.{i}'], expected.detach())


@pytest.mark.parametrize('plan', PLANS)
def test_the_auxiliary_loss_reaches_the_pruners_alone(mmpretrain, plan):
    model = classifier(plan).train()
    CroprHook().attach(model)
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    losses['cropr.loss_aux'].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith('backbone.pruners.')}


def test_the_multi_label_head_works_on_mixed_images_too(mmpretrain):
    model = classifier().train()
    model.backbone = small_vit(pruning=dict(pruner=cropr('MultiLabelAuxHead', CLASSES), rate=8)).train()
    CroprHook().attach(model)
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    assert losses['cropr.loss_aux'].isfinite()


def test_the_class_token_answers_where_most_tokens_were_dropped(mmpretrain):
    """One-shot without fusion: what is left of the image is the [CLS] token and a fifth of the patches."""
    model = classifier('one-shot').eval()
    assert model.backbone.schedule.tokens_per_block(5, (6, 6), 1, fusion=False) == [37, 37, 37, 8, 8]
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        feature = model.backbone(images)[-1]
        assert feature.tokens.shape[1] == 7
        torch.testing.assert_close(model(images), model.head.fc(feature.prefix[:, 0]))
