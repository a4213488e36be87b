"""A GPU keeps the tokens that a CPU keeps, and computes the same."""

import pytest
import torch

from .small import ATTENTION, DIFFICULTY, FAMILIES, LABELS, PRUNERS, distance, on, pruned, samples

HALVES = {torch.float16: 0.005, torch.bfloat16: 0.04}


def look(model, images, scores=None):
    """What a model computes of images: its map, the positions kept after each block, and all scores by position.

    Args:
        scores: by block and position; where given, tokens are pruned by these, whatever the model's own are.
    """
    kept, seen = {}, {}
    model.prune_listeners.append(lambda block, stay, go: kept.update({block: stay.sort(dim=1).values.cpu()}))
    for block, pruner in model.pruners.items():

        def score(tokens, context, own=pruner.score, block=block):
            values = own(tokens, context)
            table = torch.full((len(values), context.grid[0] * context.grid[1]), torch.nan, device=values.device)
            seen[block] = table.scatter(1, tokens.position, values.float()).cpu()
            return values if scores is None else scores[block].to(values.device).gather(1, tokens.position)

        pruner.score = score
    with torch.no_grad():
        (level,) = model(images)
    return level.to_dense(), kept, seen


def compare(model, images, device):
    """In float32."""
    expected, places, scores = look(on('cpu', model).eval(), images)
    found, kept, ours = look(on(device, model).eval(), images.to(device))
    assert found.device.type == torch.device(device).type and list(kept) == list(places)
    for block, stay in places.items():
        assert torch.equal(kept[block], stay), f'block {block}'
        torch.testing.assert_close(ours[str(block)], scores[str(block)], rtol=1e-3, atol=1e-3, equal_nan=True)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_float32(device, family, attention):
    compare(pruned(DIFFICULTY, family, **ATTENTION[attention]), torch.randn(3, 3, 24, 24), device)


@pytest.mark.parametrize('pruner', PRUNERS)
def test_every_pruner(device, pruner):
    compare(pruned(PRUNERS[pruner]), torch.randn(3, 3, 24, 24), device)


@pytest.mark.parametrize('family', FAMILIES)
def test_other_sizes_and_padding(device, family):
    images = torch.randn(2, 3, 30, 21)
    images[1, :, 17:] = 0
    images[1, :, :, 9:] = 0
    model = pruned(DIFFICULTY, family)
    compare(model, images, device)
    _, kept, _ = look(on(device, model).eval(), images.to(device))
    positions = kept[0][1]  # 40 of 8 × 6 patches, of which the second image fills 5 × 3
    assert len(positions) == 40
    assert {row * 6 + column for row in range(5) for column in range(3)} <= set(positions.tolist())


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_half_precision(device, family, attention, dtype):
    """Given which tokens are kept, as a rounded score may keep another one."""
    model, images = pruned(DIFFICULTY, family, **ATTENTION[attention]), torch.randn(3, 3, 24, 24)
    expected, _, scores = look(on('cpu', model).eval(), images)
    half = on(device, model, dtype).eval()
    for pruner in half.pruners.values():
        pruner.switch_to_deploy()
    found, _, ours = look(half, images.to(device, dtype), scores)
    assert found.dtype == dtype and distance(found, expected) < HALVES[dtype]
    for block, values in scores.items():
        there = ~values.isnan()
        assert torch.equal(there, ~ours[block].isnan())
        assert distance(ours[block][there], values[there]) < HALVES[dtype], f'block {block}'


@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_gradients(device, family, attention):
    model, images = pruned(DIFFICULTY, family, **ATTENTION[attention]), torch.randn(2, 3, 24, 24)
    labels, gradients = samples('map', 'cpu'), []
    for place in ('cpu', device):
        trained = on(place, model).train()
        (level,) = trained(images.to(place))
        loss = level.to_dense().pow(3).mean() + trained.aux_losses([s.to(place) for s in labels])['loss_aux']
        loss.backward()
        gradients.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
    expected, found = gradients
    assert list(found) == list(expected) and any(name.startswith('pruners.') for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name].cpu(), gradient, rtol=1e-2, atol=1e-3 * gradient.abs().max().item() + 1e-6, msg=name
        )


@pytest.mark.parametrize('pruner, kind', [(pruner, kind) for pruner, kinds in LABELS.items() for kind in kinds])
def test_auxiliary_losses(device, pruner, kind):
    model, images, labels = pruned(PRUNERS[pruner]), torch.randn(2, 3, 24, 24), samples(kind, 'cpu')
    losses = []
    for place in ('cpu', device):
        trained = on(place, model).train()
        trained(images.to(place))
        losses.append(trained.aux_losses([sample.to(place) for sample in labels]))
    assert list(losses[0]) == list(losses[1]) and losses[1]['loss_aux'].device.type == torch.device(device).type
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name].cpu(), loss, rtol=1e-3, atol=1e-3)
