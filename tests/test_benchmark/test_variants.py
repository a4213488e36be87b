"""The same weights, whatever the pruner."""

import pytest
import torch
from helpers import cropr, small_vit
from torch import nn

from cropr_mm.benchmark.variants import VARIANTS, build_variants, pruning_of
from cropr_mm.models.cropr_vit import find_backbone

PRUNING = dict(pruner=cropr('PatchSegAuxHead'), rate=8)


def first_pruner(backbone):
    return next(backbone.pruners.children())


class Whole(nn.Module):
    def __init__(self, pruning):
        super().__init__()
        self.backbone = small_vit(pruning=pruning)
        self.head = nn.Linear(16, 3)


@pytest.mark.parametrize('build', [lambda pruning: small_vit(pruning=pruning), Whole])
@pytest.mark.parametrize('training', [False, True])
def test_variants_share_all_weights_but_those_of_the_pruners(build, training):
    variants = build_variants(build, PRUNING, VARIANTS, 3, training)
    assert tuple(variants) == VARIANTS
    weights = variants['dense'].state_dict()
    for name, model in variants.items():
        assert model.training == training
        assert name == 'dense' or len(find_backbone(model).pruners) == 3
        for key, value in weights.items():
            assert torch.equal(model.state_dict()[key], value)
    queries = first_pruner(find_backbone(variants['patch'])).queries
    assert queries.shape == ((36 if training else 1), 16)  # folded, as for deployment
    assert type(first_pruner(find_backbone(variants['random']))).__name__ == 'RandomPruner'


@pytest.mark.parametrize(
    'own, kind', [(PRUNING['pruner'], 'CroprPruner'), (dict(type='RandomPruner'), 'DifficultyPruner'), (None, None)]
)
def test_cropr_is_the_learned_pruner_of_the_config(own, kind):
    variants = build_variants(lambda p: small_vit(pruning=p), dict(rate=8, pruner=own), ['cropr'], 3)
    assert type(first_pruner(variants['cropr'])).__name__ == (kind or 'DifficultyPruner')


def test_settings_follow_the_name():
    names = ['patch', 'patch:rate=4,pruner.aux_head.query_stride=2,aux_share=0.5']
    plain, changed = build_variants(lambda p: small_vit(pruning=p), PRUNING, names, 3, training=True).values()
    assert (plain.schedule.rate, changed.schedule.rate) == (8, 4)
    assert (len(first_pruner(plain).queries), len(first_pruner(changed).queries)) == (36, 9)
    assert pruning_of(names[1], PRUNING, 3)['aux_share'] == 0.5 and PRUNING['rate'] == 8


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r'backbone.pruning is not set'):
        build_variants(lambda p: small_vit(pruning=p), None)
    with pytest.raises(ValueError, match=r'variant nobody; valid are dense, cropr'):
        build_variants(lambda p: small_vit(pruning=p), PRUNING, ['dense', 'nobody'])
    for wrong in ('dense:rate=3', 'patch:rate', 'patch:=3', 'patch:,'):
        with pytest.raises(ValueError, match=rf'variant {wrong}; name:key=value'):
            build_variants(lambda p: small_vit(pruning=p), PRUNING, [wrong])
    norms = iter([True, False])
    with pytest.raises(ValueError, match=r'does not fit the CroprViT of the config \(left over: norm.weight'):
        build_variants(lambda p: small_vit(pruning=p, final_norm=next(norms)), PRUNING)
