"""docs/pytorch.md and docs/custom-pruner.md run as they stand there; docs/training.md says what the log shows."""

import pytest
import torch
from mmengine.registry import MODELS

from cropr_mm import CroprViT

from ..helpers import seg_sample
from .pages import blocks, page, section


def test_a_pruner_of_your_own():
    try:
        exec(blocks(page('custom-pruner'), 'python')[0], {})
        arch = dict(family='vit', embed_dim=16, depth=4, num_heads=2)
        vit = CroprViT(arch, 32, 8, pruning=dict(pruner=dict(type='NormPruner'), keep={0: 0.5}, round_to=1)).eval()
        seen = []
        vit.blocks[0].register_forward_hook(lambda module, args, x: seen.append(x[:, 1:].norm(dim=-1)))
        vit.prune_listeners.append(lambda block, kept, pruned: seen.append((kept, pruned)))
        vit(torch.randn(1, 3, 32, 32))
        norms, (kept, pruned) = seen
        assert norms[0, kept[0]].min() > norms[0, pruned[0]].max() and kept.shape == pruned.shape == (1, 8)
    finally:
        MODELS.module_dict.pop('NormPruner', None)


def test_plain_pytorch(tmp_path, monkeypatch, capsys):
    """The page from top to bottom: weights, maps, FLOPs, and a step that moves the backbone."""
    monkeypatch.chdir(tmp_path)
    torch.save(CroprViT('vit-tiny', 224, 16).state_dict(), 'deit_tiny_patch16_224.pth')
    saved = torch.load('deit_tiny_patch16_224.pth')['blocks.3.mlp.fc1.weight']
    build, forward, measure, train = blocks(page('pytorch'), 'python')
    names = {}
    exec(build, names)
    model = names['model']
    assert torch.equal(model.blocks[3].mlp.fc1.weight, saved)
    assert torch.equal(names['dense'].blocks[3].mlp.fc1.weight, saved)
    exec(forward, names)
    assert names['features'].shape == (2, 192, 14, 14)
    assert torch.equal(names['features'], names['level'].to_dense())
    exec(measure, names)
    assert not any('aux_head' in name for name in model.state_dict())
    tokens, _, share = capsys.readouterr().out.splitlines()[0].rpartition('] ')
    assert 0.5 < float(share) < 0.8 and tokens.startswith('[197, ')
    exec(train, names)
    assert not torch.equal(names['model'].blocks[3].mlp.fc1.weight, saved)


@pytest.mark.parametrize('classes', [3, 9])
def test_where_the_auxiliary_losses_begin(classes):
    """ln(classes + 1) for the classifier, ln(tokens) for the attention."""
    assert 'ln(classes + 1) for the classifier plus ln(tokens)' in section(page('training'), 'A healthy log')
    arch = dict(family='vit', embed_dim=64, depth=6, num_heads=2)
    pruner = dict(type='DifficultyPruner', num_classes=classes)
    vit = CroprViT(arch, 64, 8, pruning=dict(pruner=pruner, rate=0)).train()
    vit(torch.randn(2, 3, 64, 64))
    losses = vit.aux_losses([seg_sample(torch.randint(classes, (64, 64))) for _ in range(2)])
    expected = torch.log(torch.tensor([classes + 1.0, 64.0])).sum()
    torch.testing.assert_close(losses['aux.0'], expected, rtol=0.1, atol=0.1)
