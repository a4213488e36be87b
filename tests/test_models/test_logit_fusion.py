"""Early exit: pruned patches have the class of the linear classifier, the others that of the head."""

import pytest
import torch
import torch.nn.functional as F
from helpers import cropr, liven, seg_sample, small_vit
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

from cropr_mm import DifficultyPruner, LogitFusionHead, TokenReinsertion

CLASSES = 3
PRUNER = dict(type='DifficultyPruner', num_classes=CLASSES)
PRUNING = dict(pruner=PRUNER, rate=8, fusion='logits')


def vit(**pruning):
    return small_vit(pruning={**PRUNING, **pruning}).eval()


# --- the logits of what left ----------------------------------------------------------------------------------------


@given(st.tuples(st.integers(3, 7), st.integers(3, 7)), st.integers(1, 3), st.booleans())
def test_each_pruned_patch_has_the_logits_with_which_it_left(grid, batch, windows):
    model = small_vit(pruning=dict(PRUNING, rate=0.2), **(dict(window_size=3) if windows else {})).double().eval()
    entered = {}
    for block, pruner in model.pruners.items():
        pruner.register_forward_hook(lambda m, args, out, block=block: entered.update({block: (m, args[0], out[1])}))
    images = torch.randn(batch, 3, grid[0] * 4, grid[1] * 4, dtype=torch.float64)
    (feature,) = model(images)
    maps = TokenReinsertion(num_classes=CLASSES)([feature])
    expected = torch.zeros(batch, CLASSES + 1, *grid, dtype=torch.float64)
    for pruner, tokens, removed in entered.values():
        for b in range(batch):
            for position in removed[0].position[b].tolist():
                (row,) = (tokens.all_positions[b] == position).nonzero().flatten().tolist()
                x = tokens.x[b, row]
                x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
                x = x * pruner.aux_head.norm.weight + pruner.aux_head.norm.bias
                logits = pruner.aux_head.fc.weight @ x + pruner.aux_head.fc.bias
                expected[b, :, position // grid[1], position % grid[1]] = F.pad(logits[:-1].detach(), (0, 1), value=1)
    torch.testing.assert_close(maps[-1], expected)
    assert not maps[-1].requires_grad
    assert int(maps[-1][:, -1].sum()) == batch * (feature.num_positions - feature.tokens.shape[1])
    torch.testing.assert_close(maps[0], feature.to_dense())


def test_a_folded_model_keeps_its_classifiers_and_nothing_else():
    model, images = vit(), torch.randn(2, 3, 24, 20)
    neck = TokenReinsertion(num_classes=CLASSES)
    before = neck(model(images))
    model.switch_to_deploy()
    assert not any(pruner.learns for pruner in model.pruners.values())
    deployed = vit(deploy=True)
    deployed.load_state_dict(model.state_dict())
    names = {name for name, _ in deployed.pruners['0'].named_parameters()}
    assert names == {'queries', *(f'aux_head.{part}' for part in ('norm.weight', 'norm.bias', 'fc.weight', 'fc.bias'))}
    for ours, theirs in zip(neck(deployed(images)), before):
        assert torch.equal(ours, theirs)
    deployed.train()
    deployed(images)
    assert deployed.aux_losses([]) == {}


def test_a_checkpoint_of_the_other_fusion_serves():
    other = small_vit(pruning=dict(PRUNING, blocks=[0, 2], fusion='last_layer'))
    model = vit(blocks=[0, 2])
    model.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r'holds folded scorers'):
        other.switch_to_deploy()
        model.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(pruner=cropr()), "fusion='logits' with pruning.pruner.type='CroprPruner'; a pruner that classifies"),
        (dict(pruner=dict(type='ToMeReducer')), "pruning.pruner.type='ToMeReducer'; a pruner that classifies"),
        (dict(absorb='nearest'), "fusion='logits' with pruning.absorb='nearest'; None is expected"),
    ],
)
def test_what_does_not_fit_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        vit(**settings)


# --- in a head of mmsegmentation ------------------------------------------------------------------------------------


@pytest.fixture
def scope():
    pytest.importorskip('mmseg')
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def fcn(**settings):
    head = dict(type='FCNHead', in_channels=16, in_index=0, channels=16, num_convs=0, concat_input=False)
    return {**head, **dict(dropout_ratio=0.0, num_classes=CLASSES, norm_cfg=None), **settings}


def segmentor(**backbone):
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(24, 24), seg_pad_val=255),
        backbone=dict(type='CroprViT', arch=dict(embed_dim=16, depth=4, num_heads=2), img_size=24, patch_size=4),
        neck=dict(type='TokenReinsertion', num_classes=CLASSES),
        decode_head=dict(type='LogitFusionHead', head=fcn()),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    model['backbone'].update(backbone)
    return liven(MODELS.build(ConfigDict(model)))


def test_it_predicts_and_learns_patch_by_patch(scope):
    model = segmentor(pruning=PRUNING).eval()
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        features, pruned = model.extract_feat(images)
        logits = model(images)
        ours = model.decode_head.head([features])
    for b in range(2):
        for row in range(6):
            for column in range(6):
                left = bool(pruned[b, -1, row, column])
                expected = pruned[b, :-1, row, column] if left else ours[b, :, row, column]
                assert torch.equal(logits[b, :, row, column], expected)
    assert 0 < pruned[:, -1].mean() < 1
    # the loss is that of the composition, and reaches the head through the patches that are kept alone
    model.train()
    samples = [seg_sample(torch.randint(CLASSES, (24, 24))) for _ in range(2)]
    losses = model.decode_head.loss((features, pruned), samples, None)
    labels = torch.stack([sample.gt_sem_seg.data.squeeze(0) for sample in samples])
    big = F.interpolate(logits, (24, 24), mode='bilinear', align_corners=False)
    torch.testing.assert_close(losses['loss_ce'].detach(), F.cross_entropy(big, labels))
    everything = torch.cat([pruned[:, :-1], torch.ones_like(pruned[:, :1])], dim=1)
    gone = model.decode_head.loss((features.requires_grad_(), everything), samples, None)['loss_ce']
    gone.backward()
    assert not features.grad.any()


def test_where_nothing_is_pruned_it_is_the_head(scope):
    model = segmentor(pruning=None).eval()
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        features, _ = model.extract_feat(images)
        assert torch.equal(model(images), model.decode_head.head([features]))
    assert model.num_classes == model.out_channels == CLASSES


def test_weights_of_the_head_alone_load(scope):
    alone, wrapped = liven(MODELS.build(fcn())), LogitFusionHead(fcn())
    wrapped.load_state_dict(alone.state_dict())
    assert torch.equal(wrapped.head.conv_seg.weight, alone.conv_seg.weight)
    other = LogitFusionHead(fcn())
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(other.head.conv_seg.bias, alone.conv_seg.bias)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*head\.conv\.weight'):
        wrapped.load_state_dict({**alone.state_dict(), 'conv.weight': torch.zeros(1)})


def test_maps_larger_than_the_grid(scope):
    class Upsampling(torch.nn.Module):
        def forward(self, levels):
            return F.interpolate(levels[0][:, :CLASSES], scale_factor=2)

    head = LogitFusionHead(fcn())
    head.head = Upsampling()
    features, pruned = torch.zeros(1, 16, 2, 2), torch.zeros(1, CLASSES + 1, 2, 2)
    pruned[0, :, 1, 0] = torch.tensor([5.0, 6.0, 7.0, 1.0])
    out = head((features, pruned))
    assert out.shape == (1, CLASSES, 4, 4)
    assert (out[0, :, 2:, :2] == torch.tensor([5.0, 6.0, 7.0])[:, None, None]).all() and out.sum() == 4 * 18


@pytest.mark.parametrize(
    ('act', 'message'),
    [
        (lambda: LogitFusionHead(dict(type='TokenPooling')), "head.type='TokenPooling'; a decode head"),
        (
            lambda: LogitFusionHead(fcn(out_channels=1, num_classes=2)),
            'head.out_channels=1; num_classes, 2, is',
        ),
        (lambda: LogitFusionHead(fcn())([torch.zeros(1, 16, 2, 2)]), 'the last of 1 maps has 16 channels'),
        (lambda: LogitFusionHead(fcn())([torch.zeros(1, 16, 2, 2)] * 2), 'the last of 2 maps has 16 channels'),
    ],
)
def test_a_head_or_maps_that_do_not_fit_are_named(act, message, scope):
    with pytest.raises(ValueError, match=message):
        act()


def test_it_is_the_pruner_of_the_config():
    assert all(isinstance(p, DifficultyPruner) and p.classify for p in vit().pruners.values())
    assert not any(p.classify for p in small_vit(pruning=dict(PRUNING, fusion=None)).pruners.values())
