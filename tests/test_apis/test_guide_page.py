"""docs/guide.md: its Python runs as it stands there."""

import re

import pytest
import torch
from mmengine.registry import MODELS

from cropr_mm import CroprViT

from ..helpers import seg_sample
from ..test_tools.conftest import ROOT

PAGE = (ROOT / 'docs' / 'guide.md').read_text()


def code(section):
    """The first Python of a section."""
    text = PAGE.split(f'\n## {section}\n')[1].split('\n## ')[0]
    return re.search(r'```python\n(.*?)```', text, re.S).group(1)


def test_a_pruner_of_your_own():
    try:
        exec(code('A pruner of your own'), {})
        arch = dict(family='vit', embed_dim=16, depth=4, num_heads=2)
        vit = CroprViT(arch, 32, 8, pruning=dict(pruner=dict(type='NormPruner'), keep={0: 0.5}, round_to=1)).eval()
        seen = []
        vit.blocks[0].register_forward_hook(lambda module, args, x: seen.append(x[:, 1:].norm(dim=-1)))
        vit.prune_listeners.append(lambda module, block, kept, removed: seen.append((kept, removed)))
        vit(torch.randn(1, 3, 32, 32))
        norms, (kept, removed) = seen
        assert norms[0, kept[0]].min() > norms[0, removed[0]].max() and kept.shape == removed.shape == (1, 8)
    finally:
        MODELS.module_dict.pop('NormPruner', None)


def test_without_an_mm_library(tmp_path, monkeypatch):
    """It reads the weights, trains backbone and scorers, and folds them."""
    monkeypatch.chdir(tmp_path)
    torch.save(CroprViT('vit-tiny', 224, 16).state_dict(), 'deit_tiny_patch16_224.pth')
    script, names = code('Without an mm library'), {}
    training, inference = script.split('loss.backward()')
    exec(training, names)
    model, saved = names['model'], torch.load('deit_tiny_patch16_224.pth')
    assert torch.equal(model.blocks[3].mlp.fc1.weight, saved['blocks.3.mlp.fc1.weight'])
    assert names['features'].shape == (2, 192, 14, 14)
    exec('loss.backward()' + inference, names)
    assert not torch.equal(model.blocks[3].mlp.fc1.weight, saved['blocks.3.mlp.fc1.weight'])
    assert not any('aux_head' in name for name in model.state_dict())


@pytest.mark.parametrize('classes', [3, 9])
def test_where_the_auxiliary_losses_begin(classes):
    """ln(classes + 1) for the classifier, ln(tokens) for the attention."""
    arch = dict(family='vit', embed_dim=64, depth=6, num_heads=2)
    pruner = dict(type='DifficultyPruner', num_classes=classes)
    vit = CroprViT(arch, 64, 8, pruning=dict(pruner=pruner, rate=0)).train()
    vit(torch.randn(2, 3, 64, 64))
    losses = vit.aux_losses([seg_sample(torch.randint(classes, (64, 64))) for _ in range(2)])
    expected = torch.log(torch.tensor([classes + 1.0, 64.0])).sum()
    torch.testing.assert_close(losses['aux.0'], expected, rtol=0.1, atol=0.1)
