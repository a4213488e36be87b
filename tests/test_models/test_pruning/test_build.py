"""A checkpoint at another schedule: each scorer stays with its block."""

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.runner.checkpoint import load_state_dict as mm_load_state_dict


def pruned(pruner=None, **schedule):
    return small_vit(pruning=dict(pruner=pruner or cropr(), **schedule)).eval()


def torch_load(model, state):
    model.load_state_dict(state, strict=True)


@pytest.mark.parametrize('load', [torch_load, mm_load_state_dict], ids=['torch', 'mmengine'])
@pytest.mark.parametrize('schedule', [dict(keep={1: 0.4}), dict(rate=8, blocks=[0, 2]), dict(keep={2: 0.5})], ids=str)
def test_scorers_follow_their_blocks(load, schedule):
    trained, other = pruned(rate=8), pruned(**schedule)
    load(other, trained.state_dict())
    for block, pruner in zip(other.schedule.blocks, other.pruners):
        for ours, theirs in zip(pruner.parameters(), trained.pruners[block].parameters()):
            assert torch.equal(ours, theirs)
    assert other.pruners.blocks.tolist() == list(other.schedule.blocks)


@pytest.mark.parametrize('load', [torch_load, mm_load_state_dict], ids=['torch', 'mmengine'])
def test_blocks_without_a_scorer_are_named(load):
    trained = pruned(rate=8, blocks=[0, 2])
    with pytest.raises(
        ValueError, match=r'pruners: the checkpoint has scorers behind blocks \[0, 2\], none behind \[1\]'
    ):
        load(pruned(rate=8), trained.state_dict())


def test_another_rate_needs_nothing_special():
    trained, other = pruned(rate=8), pruned(rate=3)
    torch_load(other, trained.state_dict())
    assert torch.equal(other.pruners[2].queries, trained.pruners[2].queries)


def test_selectors_without_parameters_load_at_any_schedule():
    random = dict(type='RandomPruner')
    torch_load(pruned(random, keep={1: 0.5}), pruned(random, rate=8).state_dict())


def test_the_state_dict_handed_in_is_left_alone():
    state = pruned(rate=8).state_dict()
    names = list(state)
    torch_load(pruned(keep={1: 0.4}), state)
    assert list(state) == names


def test_a_dense_state_dict_says_nothing_of_pruning():
    dense = small_vit()
    assert not any('pruners' in name for name in dense.state_dict())
    pruned(rate=8).load_state_dict(dense.state_dict(), strict=False)


def test_pruners_are_left_over_where_a_dense_model_loads_strictly():
    with pytest.raises(RuntimeError, match=r'Unexpected key.*pruners.0.queries'):
        small_vit().load_state_dict(pruned(rate=8).state_dict())


def test_a_slice_keeps_the_blocks_of_its_selectors():
    pruners = small_vit(pruning=dict(pruner=cropr(), rate=8)).pruners
    part = pruners[1:]
    assert list(part) == list(pruners)[1:] and part.blocks.tolist() == pruners.blocks.tolist()[1:]
    assert pruners[-1] is list(pruners)[-1] and len(pruners[:0]) == 0
    assert 'blocks' not in pruners[:0].state_dict()
