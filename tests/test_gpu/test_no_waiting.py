"""The host never waits for the GPU: not in a forward pass, not for auxiliary losses, not for their gradients."""

from contextlib import contextmanager

import pytest
import torch

from .small import ATTENTION, DIFFICULTY, FAMILIES, LABELS, PRUNERS, on, pruned, samples


@contextmanager
def no_waiting(device):
    if not device.startswith('cuda'):
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_one_that_waits_is_found(gpu):
    ones = torch.ones(3, device=gpu)
    for wait in (lambda: ones.sum().item(), lambda: ones.nonzero(), lambda: torch.tensor([1.0]).to(gpu)):
        with pytest.raises(RuntimeError, match='synchroniz'), no_waiting(gpu):
            wait()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_inference(device, family, attention, dtype):
    model = on(device, pruned(DIFFICULTY, family, **ATTENTION[attention]), dtype).eval()
    images = torch.randn(2, 3, 24, 24).to(device, dtype)
    with torch.no_grad():
        model(images)  # libraries begin
        with no_waiting(device):
            model(images)[0].to_dense()


@pytest.mark.parametrize('pruner', [*PRUNERS, 'random'])
def test_inference_of_every_pruner(device, pruner):
    model = on(device, pruned(PRUNERS.get(pruner, dict(type='RandomPruner')))).eval()
    images = torch.randn(2, 3, 24, 24).to(device)
    with torch.no_grad():
        model(images)
        with no_waiting(device):
            model(images)[0].to_dense()


def train(model, images, labels):
    (level,) = model(images)
    loss = level.to_dense().square().mean() + model.aux_losses(labels)['loss_aux']
    loss.backward()


@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_training(device, family, attention):
    model = on(device, pruned(DIFFICULTY, family, drop_path_rate=0.2, **ATTENTION[attention])).train()
    batch = torch.randn(2, 3, 24, 24).to(device), samples('map', device)
    train(model, *batch)
    with no_waiting(device):
        train(model, *batch)


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('pruner, kind', [(pruner, kind) for pruner, kinds in LABELS.items() for kind in kinds])
def test_auxiliary_losses(device, pruner, kind, recompute):
    model = pruned(PRUNERS[pruner])
    model._supervision.recompute = recompute
    model, images, labels = on(device, model).train(), torch.randn(2, 3, 24, 24).to(device), samples(kind, device)
    train(model, images, labels)
    with no_waiting(device):
        train(model, images, labels)
