"""Timing in turns."""

import time

import pytest
import torch

from cropr_mm.analysis.throughput import Timing, build_variants, compare_throughput

AUX_HEAD = dict(type='PatchSegAuxHead', num_classes=3)
BACKBONE = dict(
    type='CroprViT',
    arch=dict(family='vit', embed_dim=16, depth=5, num_heads=2),
    img_size=24,
    patch_size=4,
    pruning=dict(pruner=dict(type='CroprPruner', aux_head=AUX_HEAD), rate=8),
)


def test_every_round_times_each_once_and_begins_with_another():
    order = []
    calls = {name: (lambda n=name: (order.append(n), time.sleep(0.001))) for name in 'abc'}
    timings = compare_throughput(calls, batch_size=4, rounds=3, warmup=0, min_seconds=0)
    assert ''.join(order) == 'abc' + 'abc' + 'bca' + 'cab'
    assert all(len(t.seconds) == 3 and 0 < t.images_per_second < 4000 for t in timings.values())


def test_figures():
    slow, fast = Timing(8, (2.0, 4.0, 2.0, 2.0, 2.0)), Timing(8, (1.0, 2.0, 1.0, 1.0, 1.0))
    assert slow.images_per_second == 4
    assert fast.ratio_to(slow) == 2
    assert Timing(1, (1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)


@pytest.mark.parametrize('key', ['rounds', 'batch_size'])
def test_wrong_settings_are_named(key):
    with pytest.raises(ValueError, match=f'{key}=0'):
        compare_throughput({}, **{'batch_size': 1, key: 0})


@pytest.mark.parametrize('pruner', [None, 'RandomPruner'])
def test_variants_share_their_weights(pruner):
    settings = dict(BACKBONE, pruning=dict(BACKBONE['pruning'], pruner=pruner and dict(type=pruner)))
    variants = build_variants(BACKBONE if pruner is None else settings)
    weights = variants['dense'].state_dict()
    for model in variants.values():
        assert not model.training
        for key, value in weights.items():
            assert torch.equal(model.state_dict()[key], value)
    assert variants['cropr'].pruners[0].queries.shape == (1, 16)  # folded, as for deployment
    assert type(variants['random'].pruners[0]).__name__ == 'RandomPruner'


def test_variants_need_pruning():
    with pytest.raises(ValueError, match=r'backbone\.pruning is not set'):
        build_variants(dict(BACKBONE, pruning=None))
