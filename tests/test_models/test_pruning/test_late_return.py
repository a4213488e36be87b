"""Tokens that return by a learned cross-attention: what begins, trains, loads and stays merged."""

import pytest
import torch
from helpers import cropr, small_vit

from cropr_mm.engine.retrofit import freeze_all_but_pruners
from cropr_mm.models.pruning.late_return import LateReturn
from cropr_mm.tokens import Removed, Tokens

PRUNING = dict(pruner=cropr(), rate=6, fusion='cross_attention')


def test_a_new_one_changes_nothing():
    """As ``fusion=None`` with ``fill='exit'``; weights of the other load."""
    model = small_vit(pruning=dict(PRUNING, fusion=None)).eval()
    late = small_vit(pruning=PRUNING).eval()
    late.late_return = LateReturn(late.arch)
    late.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(2, 3, 24, 24)
    assert late.schedule.counts((6, 6), 1) == model.schedule.counts((6, 6), 1)
    torch.testing.assert_close(late(images)[0].to_dense(), model(images)[0].to_dense())


def test_weights_of_a_dense_model_load_and_it_goes_along_in_a_checkpoint(tmp_path):
    dense, late, other = small_vit(), small_vit(pruning=PRUNING), small_vit(pruning=PRUNING)
    before = late.late_return.q.weight.clone()
    torch.save(dense.state_dict(), tmp_path / 'dense.pth')
    late.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'dense.pth'))
    late.init_weights()
    assert torch.equal(late.blocks[0].mlp.fc1.weight, dense.blocks[0].mlp.fc1.weight)
    assert torch.equal(late.late_return.q.weight, before)
    other.load_state_dict(late.state_dict())
    assert torch.equal(other.late_return.q.weight, before)
    small_vit(pruning=dict(PRUNING, fusion=None)).load_state_dict(late.state_dict(), strict=False)


def test_retrofit_trains_it_and_the_pruners():
    model = small_vit(pruning=PRUNING)
    freeze_all_but_pruners(model)
    trained = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {'pruners', 'late_return'}


def test_merged_tokens_come_back_with_the_token_they_share():
    module = LateReturn(small_vit().arch)
    torch.nn.init.normal_(module.proj.weight)
    x = torch.randn(1, 3, 16)
    tokens = Tokens(x[:, :2], torch.tensor([[0, 3]]))
    removed = [Removed(torch.tensor([[1]]), owner=torch.tensor([[3]])), Removed(torch.tensor([[2]]), x=x[:, 2:])]
    back = module(tokens, removed, torch.arange(4)).x
    assert torch.equal(back[0, [0, 1, 3]], x[0, [0, 1, 1]]) and not torch.allclose(back[0, 2], x[0, 2])


def test_the_last_block_must_be_there():
    with pytest.raises(ValueError, match=r'out_indices=\(3,\) leaves out the last block'):
        small_vit(pruning=dict(PRUNING, blocks=[0]), out_indices=(3,))
