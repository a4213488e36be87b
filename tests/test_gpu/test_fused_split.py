"""Selecting and moving tokens in one Triton kernel: the same tokens as without it."""

import copy

import pytest
import torch

from cropr_mm import use_cuda_graphs

from .small import FAMILIES, PRUNERS, on, pruned


def with_and_without(model):
    twin = copy.deepcopy(model)
    for plain, other in zip(model.pruners.values(), twin.pruners.values()):
        plain.fused, other.fused = False, True
    return twin, model


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('family', FAMILIES)
def test_the_same_tokens_to_the_bit(gpu, family, dtype):
    pytest.importorskip('triton')
    twin, plain = with_and_without(on(gpu, pruned(family=family), dtype).eval())
    images = torch.randn(3, 3, 24, 24).to(gpu, dtype)
    images[1, :, 12:], images[2, :, :, 9:] = 0, 0
    with torch.inference_mode():
        assert torch.equal(twin(images)[0].to_dense(), plain(images)[0].to_dense())


@pytest.mark.parametrize('pruner', [name for name in PRUNERS if name != 'random'])
def test_of_every_pruner_and_in_a_graph(gpu, pruner):
    pytest.importorskip('triton')
    twin, plain = with_and_without(on(gpu, pruned(PRUNERS[pruner])).eval())
    images = torch.randn(2, 3, 24, 24).to(gpu)
    with torch.inference_mode():
        expected = plain(images)[0].to_dense()
        assert torch.equal(twin(images)[0].to_dense(), expected)
        use_cuda_graphs(twin)
        torch.testing.assert_close(twin(images)[0].to_dense(), expected, rtol=1e-4, atol=1e-4)
