"""A recorded CUDA graph computes what the model computes, also of other images."""

import pytest
import torch

from cropr_mm import use_cuda_graphs
from cropr_mm.cuda_graphs import record

from .small import ATTENTION, DIFFICULTY, FAMILIES, PRUNERS, on, pruned


def check(model, gpu, dtype, tolerance):
    model = on(gpu, model, dtype).eval()
    model.switch_to_deploy()
    images, out = torch.randn(2, 3, 24, 24).to(gpu, dtype), {}

    def call():
        (level,) = model(images)
        out['map'] = level.to_dense()

    replay, _ = record(call)
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


@pytest.mark.parametrize('attention', ATTENTION)
def test_a_model_that_uses_graphs(gpu, attention):
    """Several shapes in turn, whose results are kept over later replays."""
    model = on(gpu, pruned(**ATTENTION[attention])).eval()
    images = [torch.randn(*shape).to(gpu) for shape in [(2, 3, 24, 24), (1, 3, 24, 36), (2, 3, 24, 24)]]
    with torch.inference_mode():
        expected = [model(x)[0].to_dense() for x in images]
    use_cuda_graphs(model)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = [model(x)[0].to_dense() for x in images]
        assert len(model.forward.recorded) == 2
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
