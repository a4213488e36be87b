"""Figures of the benchmark on a GPU."""

import pytest
import torch
from helpers import small_vit

from cropr_mm.benchmark.batches import random_batch
from cropr_mm.benchmark.flops import count_flops
from cropr_mm.benchmark.measure import Setting, measure
from cropr_mm.benchmark.memory import peak_memory
from cropr_mm.benchmark.variants import build_variants

from .small import ATTENTION, DIFFICULTY, on, pruned


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('attention', ['global', 'windows alone'])
def test_operations_count_as_on_a_cpu(device, attention, dtype):
    model, images = pruned(DIFFICULTY, 'eva02', **ATTENTION[attention]).eval(), torch.randn(2, 3, 24, 24)
    expected = count_flops(model, images)
    found = count_flops(on(device, model, dtype), images.to(device, dtype))
    if attention == 'global':
        assert found == expected > 0
    else:  # which tokens are kept decides how many pairs windows have; whole windows with holes are more
        assert 0.8 < found / expected < 2


@pytest.mark.parametrize(
    'settings', [dict(), dict(dtype=torch.bfloat16), dict(training=True), dict(training=True, dtype=torch.bfloat16)]
)
def test_figures(device, settings):
    check_figures(device, settings)


def test_figures_of_graphs(gpu):
    check_figures(gpu, dict(dtype=torch.bfloat16, cuda_graph=True))


def check_figures(device, settings):
    names = ['dense', 'difficulty', 'patch', 'random']
    training = settings.get('training', False)
    models = build_variants(lambda p: small_vit(pruning=p), dict(pruner=DIFFICULTY, rate=8), names, 3, training)
    figures = measure(models, random_batch('', 2, 24, 24, 3, device), Setting(device, rounds=1, **settings))
    assert list(figures) == names
    for row in figures.values():
        assert row['images_per_second'] > 0 and row['peak_bytes'] > 0
        assert training or all(row['milliseconds_of_parts'][part] > 0 for part in ('embedding', 'blocks'))
    assert figures['random']['gflops'] < figures['dense']['gflops'] and figures['dense']['ratio_to_dense'] == 1


def test_peak_memory_counts_what_is_alive_at_once(device):
    def one_after_the_other():
        for _ in range(4):
            torch.ones(1000, 1000, device=device)

    def together():
        return [torch.ones(1000, 1000, device=device) for _ in range(4)]

    assert peak_memory(one_after_the_other, device) == pytest.approx(4e6, rel=0.01)
    assert peak_memory(together, device) == pytest.approx(16e6, rel=0.01)
