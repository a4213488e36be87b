"""Stripped checkpoints: same features, as small as the dense model's."""

import os

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn

from cropr_mm import CroprViT, SparseFeature
from cropr_mm.checkpoint import save_weights
from cropr_mm.deploy import deployed_config, fold_into

SELECTORS = {
    'one query': cropr(),
    'a query per patch': cropr('PatchSegAuxHead'),
    'class': cropr('ClsAuxHead'),
    'random': dict(type='RandomPruner'),
    'difficulty': dict(type='DifficultyPruner', num_classes=3),
    'reverse': cropr(reverse=True),
    'reverse difficulty': dict(type='DifficultyPruner', num_classes=3, reverse=True),
    'norm': cropr('PatchSegAuxHead', pre_norm=True),
    'projections': cropr('ClsAuxHead', qkv_proj=True),
    'norm and projections': cropr(num_heads=2, pre_norm=True, qkv_proj=True),
}


class Model(nn.Module):
    """A model of an mm library, as far as backbones and other weights go."""

    def __init__(self, pruner, deploy=False, **plan):
        super().__init__()
        self.backbone = small_vit(pruning=dict(pruner=pruner, deploy=deploy, **(plan or dict(rate=8))))
        self.head = nn.Linear(16, 3)


def features(model, images):
    with torch.no_grad():
        return [level.to_dense() for level in model.backbone(images)]


def explicit_scores(weights, x, reverse):
    """Raw attention logits summed over the queries, from the parameters of a trained scorer, in double precision."""
    w, q = {name: value.double() for name, value in weights.items()}, weights['queries'].double()
    if 'input_norm.weight' in w:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w['input_norm.weight']
        x = x + w['input_norm.bias']
    if 'q_proj.weight' in w:
        q, x = (t @ w[f'{p}_proj.weight'].T + w[f'{p}_proj.bias'] for t, p in ((q, 'q'), (x, 'k')))
    scores = torch.einsum('nd,bmd->bm', q, x)
    return -scores if reverse else scores


@pytest.mark.parametrize('name', [name for name in SELECTORS if name != 'random'])
@pytest.mark.parametrize('plan', [dict(rate=8), dict(keep={2: 0.2}, fusion=None)], ids=['fusion', 'one-shot'])
def test_the_folded_model_keeps_what_the_trained_scores_say(name, plan):
    """Folding computes the scores of both models of :func:`fold_into`; here they come from the trained weights."""
    trained, deployed = (Model(SELECTORS[name], deploy, **plan).eval() for deploy in (False, True))
    weights = [{k: v.clone() for k, v in pruner.state_dict().items()} for pruner in trained.backbone.pruners.values()]
    fold_into(trained, deployed)
    backbone, seen, kept, prefix = deployed.backbone, {}, [], deployed.backbone.num_prefix_tokens
    for i, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: seen.update({i: out[:, prefix:].double()}))
    backbone.prune_listeners.append(lambda block, stay, leave: kept.append((block, stay)))
    features(deployed, torch.randn(3, 3, 24, 24))
    raster = torch.arange(36).expand(3, -1)
    assert len(kept) == len(weights) > 0
    for (block, stay), own in zip(kept, weights):
        scores = explicit_scores(own, seen[block], SELECTORS[name].get('reverse', False))
        best = raster.gather(1, scores.topk(stay.shape[1]).indices)
        assert stay.shape[1] < raster.shape[1]
        assert torch.equal(best.sort().values, stay.sort().values)
        raster = stay


@pytest.mark.parametrize('name', SELECTORS)
@pytest.mark.parametrize('plan', [dict(rate=8), dict(keep={2: 0.2}, fusion=None)], ids=['fusion', 'one-shot'])
def test_the_folded_model_gives_the_same_features(name, plan, tmp_path):
    trained, deployed = (Model(SELECTORS[name], deploy, **plan).eval() for deploy in (False, True))
    images = torch.randn(3, 3, 24, 24)
    torch.manual_seed(1)
    before = features(trained, images)
    assert fold_into(trained, deployed) <= 1e-5
    for suffix in ('.pth', '.safetensors'):
        file = save_weights(
            tmp_path / f'deployed{suffix}', deployed.state_dict(), dict(dataset_meta=dict(classes=['a']))
        )
        again = Model(SELECTORS[name], deploy=True, **plan).eval()
        checkpoint = load_checkpoint(again, str(file), strict=True)
        assert checkpoint['meta']['dataset_meta'] == dict(classes=['a'])
        torch.manual_seed(1)
        for a, b in zip(before, features(again, images)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert torch.equal(again.head.weight, trained.head.weight)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_it_is_as_small_as_the_dense_model(suffix, tmp_path):
    trained, deployed = (Model(SELECTORS['a query per patch'], deploy) for deploy in (False, True))
    fold_into(trained, deployed)
    dense = Model(SELECTORS['random'])  # no scorer has a weight
    sizes = [
        os.path.getsize(save_weights(tmp_path / f'{i}{suffix}', model.state_dict(), {}))
        for i, model in enumerate((dense, deployed))
    ]
    vectors = 3 * 16 * 4
    assert vectors <= sizes[1] - sizes[0] < vectors + 3 * 600  # a file has an entry for each tensor, besides its values


def test_a_fold_that_changes_the_output_is_refused():
    trained, deployed = (Model(cropr(), deploy) for deploy in (False, True))
    fold = trained.backbone.switch_to_deploy

    def wrong():
        fold()
        with torch.no_grad():
            trained.backbone.pruners['1'].queries.neg_()

    trained.backbone.switch_to_deploy = wrong
    with pytest.raises(ValueError, match=r'differs from the trained one by .*at most 1e-05.*nothing was written'):
        fold_into(trained, deployed)


def test_checking_leaves_the_random_numbers_of_others_alone():
    trained, deployed = (Model(cropr(), deploy) for deploy in (False, True))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fold_into(trained, deployed)
    assert torch.equal(torch.rand(2), expected)


# --- the config -----------------------------------------------------------------------------------------------


def config(**pruning):
    backbone = dict(type='CroprViT', arch='vit-tiny', pruning=dict(pruner=cropr(), rate=8, **pruning))
    return Config(dict(model=dict(type='Wrapper', detector=dict(type='Detector', backbone=backbone))))


def test_the_options_make_the_deployed_config():
    cfg = config()
    deployed, options = deployed_config(cfg)
    assert options == ['model.detector.backbone.pruning.deploy=True']
    assert deployed.model.detector.backbone.pruning.deploy is True
    assert 'deploy' not in cfg.model.detector.backbone.pruning
    again = config()
    again.merge_from_dict({options[0].split('=')[0]: True})
    assert again.model == deployed.model


@pytest.mark.parametrize('kind', [CroprViT, 'mmengine.CroprViT', 'mmseg.CroprViT'])
def test_the_backbone_is_found_however_its_type_is_written(kind):
    cfg = config()
    cfg.model.detector.backbone.type = kind
    assert deployed_config(cfg)[1] == ['model.detector.backbone.pruning.deploy=True']


@pytest.mark.parametrize('pruning', [dict(rate=3), dict(rate=3, pruner=None), dict(rate=3, pruner='RandomPruner')])
def test_pruning_without_a_pruner_is_named(pruning):
    cfg = config()
    cfg.model.detector.backbone.pruning = pruning
    with pytest.raises(ValueError, match=r'model.detector.backbone.pruning.pruner=.*; a config with a type is exp'):
        deployed_config(cfg)


def test_configs_with_nothing_to_fold_are_named():
    cfg = config()
    cfg.model.detector.backbone.pruning = None
    with pytest.raises(ValueError, match='no CroprViT with pruning'):
        deployed_config(cfg)
    with pytest.raises(ValueError, match=r'model.detector.backbone.pruning.deploy=True: give the config'):
        deployed_config(config(deploy=True))


def test_levels_without_a_class_token_are_compared_too():
    trained, deployed = (
        small_vit(arch=dict(class_token=False), pruning=dict(pruner=cropr(), rate=8, deploy=deploy))
        for deploy in (False, True)
    )
    assert isinstance(trained(torch.zeros(1, 3, 24, 24))[0], SparseFeature)
    assert fold_into(trained, deployed) <= 1e-5
