"""Options that make the auxiliary side of training cheaper change what they say they change, and nothing else."""

import weakref

import pytest
import torch
from helpers import cropr, seg_sample, small_vit

from cropr_mm.models.pruning.supervision.collector import AuxCollector

SAMPLES = [seg_sample(torch.randint(3, (24, 24))) for _ in range(2)]


def gradients(seed=0, pruner='PatchSegAuxHead', **options):
    torch.manual_seed(0)
    chosen = dict(type='DifficultyPruner', num_classes=3) if pruner == 'DifficultyPruner' else cropr(pruner)
    model = small_vit(pruning=dict(pruner=chosen, rate=8, **options)).double().train()
    images = torch.randn(2, 3, 24, 24).double()
    torch.manual_seed(seed)
    model(images)
    losses = model.aux_losses(SAMPLES)
    parameters = list(model.pruners.parameters())
    return losses, torch.autograd.grad(losses['loss_aux'], parameters), model


@pytest.mark.parametrize('pruner', ['PatchSegAuxHead', 'MultiLabelAuxHead', 'DifficultyPruner'])
def test_recomputing_changes_no_gradient(pruner):
    losses, expected, _ = gradients(pruner=pruner)
    again, found, _ = gradients(pruner=pruner, aux_recompute=True)
    assert losses.keys() == again.keys() and losses['loss_aux'] == again['loss_aux']
    torch.testing.assert_close(found, expected)


def stored_bytes(**options):
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    model = small_vit(pruning=dict(pruner=cropr('PatchSegAuxHead'), rate=8, **options)).train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(2, 3, 24, 24))
        before = sum(sizes.values())
        model.aux_losses(SAMPLES)
    return sum(sizes.values()) - before


def test_recomputing_stores_less():
    assert stored_bytes(aux_recompute=True) < 0.5 * stored_bytes()


def test_a_share_of_the_pruners_learns_and_the_others_get_gradients_of_zero():
    full, _, _ = gradients()
    seen = set()
    for seed in range(12):
        losses, grads, model = gradients(seed, aux_share=0.34)
        (module,) = (int(key.split('.')[1]) for key in losses if key.startswith('aux.'))
        seen.add(module)
        assert losses['loss_aux'].item() == pytest.approx(3 * full[f'aux.{module}'].item())
        named = [name for name, _ in model.pruners.named_parameters()]
        for name, grad in zip(named, grads):
            assert bool(grad.abs().sum() > 0) == name.startswith(f'{module}.')
    assert seen == {0, 1, 2}


def test_the_expected_loss_is_that_of_all_pruners():
    full, _, _ = gradients()
    totals = [gradients(seed, aux_share=0.67)[0]['loss_aux'].item() for seed in range(60)]
    assert sum(totals) / 60 == pytest.approx(full['loss_aux'].item(), rel=0.05)


@pytest.mark.parametrize('share, kept', [(1.0, 3), (0.34, 1)])
def test_tokens_are_kept_for_the_pruners_that_learn_and_until_their_loss(monkeypatch, share, kept):
    model = small_vit(pruning=dict(pruner=cropr(), rate=8, aux_share=share)).train()
    tokens, alive = [], []
    collect, loss = AuxCollector.collect, AuxCollector._loss

    def watch(self, block, current, grid):
        tokens.append(weakref.ref(current.x))
        collect(self, block, current, grid)

    def count(self, *seen):
        alive.append(sum(t() is not None for t in tokens))
        return loss(self, *seen)

    monkeypatch.setattr(AuxCollector, 'collect', watch)
    monkeypatch.setattr(AuxCollector, '_loss', count)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda t: t):  # what gradients keep is not the matter
        model(torch.randn(1, 3, 24, 24))
        model.aux_losses(SAMPLES[:1])
    assert len(tokens) == 3 and alive == list(range(kept, 0, -1))


@pytest.mark.parametrize('share', [0, 1.5, -0.1, True, 'half'])
def test_a_wrong_share_is_named(share):
    with pytest.raises(ValueError, match=r'pruning.aux_share=.*; a number above 0 and at most 1'):
        small_vit(pruning=dict(pruner=cropr(), rate=8, aux_share=share))
