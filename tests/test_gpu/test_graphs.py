"""A recorded CUDA graph computes what the model computes, also of other images."""

import pytest
import torch

from cropr_mm.benchmark.measure import graphed

from .small import ATTENTION, DIFFICULTY, FAMILIES, PRUNERS, on, pruned


def check(model, gpu, dtype, tolerance):
    model = on(gpu, model, dtype).eval()
    model.switch_to_deploy()
    images, out = torch.randn(2, 3, 24, 24).to(gpu, dtype), {}

    def call():
        (level,) = model(images)
        out['map'] = level.to_dense()

    replay = graphed(call)
    recorded = out['map']
    for _ in range(2):
        others = torch.randn(2, 3, 24, 24).to(gpu, dtype)
        images.copy_(others)
        replay()
        found = recorded.clone()
        with torch.inference_mode():
            expected = model(others)[0].to_dense()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_replay(gpu, family, attention, dtype, tolerance):
    check(pruned(DIFFICULTY, family, **ATTENTION[attention]), gpu, dtype, tolerance)


@pytest.mark.parametrize('pruner', PRUNERS)
def test_replay_of_every_pruner(gpu, pruner):
    check(pruned(PRUNERS[pruner]), gpu, torch.float32, 1e-4)
