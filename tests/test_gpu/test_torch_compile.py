"""Compiled blocks compute what others do, and train."""

import shutil

import pytest
import torch

from .small import ATTENTION, DIFFICULTY, distance, on, pruned, samples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, ('gcc', 'cc', 'clang'))), reason='torch.compile needs a C compiler'),
]
CASES = [('vit', 'global'), ('eva02', 'windows alone')]


@pytest.fixture(autouse=True)
def nothing_compiled(device):
    torch._dynamo.reset()


@pytest.mark.parametrize('family, attention', CASES)
def test_evaluation(device, family, attention):
    model = on(device, pruned(DIFFICULTY, family, **ATTENTION[attention])).eval()
    images = torch.randn(2, 3, 24, 24, device=device)
    with torch.no_grad():
        expected = model(images)[0].to_dense()
        model.compile_blocks()
        found = model(images)[0].to_dense()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('family, attention', CASES[:1])
def test_training(device, family, attention):
    model = pruned(DIFFICULTY, family, **ATTENTION[attention])
    images, labels, gradients = torch.randn(2, 3, 24, 24, device=device), samples('map', device), []
    for compiled in (False, True):
        trained = on(device, model).train()
        if compiled:
            trained.compile_blocks()
        (level,) = trained(images)
        (level.to_dense().pow(3).mean() + trained.aux_losses(labels)['loss_aux']).backward()
        gradients.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
    assert list(gradients[0]) == list(gradients[1])
    for name in ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight', 'blocks.4.mlp.fc2.weight', 'pruners.0.queries'):
        assert distance(gradients[1][name], gradients[0][name]) < 1e-2, name
