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
    for block, pruner in other.pruners.items():
        for ours, theirs in zip(pruner.parameters(), trained.pruners[block].parameters()):
            assert torch.equal(ours, theirs)
    assert list(other.pruners) == [str(block) for block in other.schedule.blocks]


@pytest.mark.parametrize('load', [torch_load, mm_load_state_dict], ids=['torch', 'mmengine'])
def test_blocks_without_a_scorer_are_named(load):
    trained = pruned(rate=8, blocks=[0, 2])
    with pytest.raises(
        ValueError, match=r'pruners: the checkpoint has pruners after blocks \[0, 2\], none after \[1\]'
    ):
        load(pruned(rate=8), trained.state_dict())


def test_another_rate_needs_nothing_special():
    trained, other = pruned(rate=8), pruned(rate=3)
    torch_load(other, trained.state_dict())
    assert torch.equal(other.pruners['2'].queries, trained.pruners['2'].queries)


def test_pruners_without_parameters_load_at_any_schedule():
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


# --- checkpoints of the first versions, which count pruners -----------------------------------------------------------


def counted(state, prefix=''):
    """A state dict as the first versions wrote it: pruners by number, and the block of each in a tensor."""
    names = [name for name in state if name.startswith(f'{prefix}pruners.')]
    blocks = sorted({int(name[len(prefix) :].split('.')[1]) for name in names})
    old = {name: value for name, value in state.items() if name not in names}
    for name in names:
        block, rest = name[len(f'{prefix}pruners.') :].split('.', 1)
        old[f'{prefix}pruners.{blocks.index(int(block))}.{rest}'] = state[name]
    return {**old, f'{prefix}pruners.blocks': torch.tensor(blocks)}


@pytest.mark.parametrize('load', [torch_load, mm_load_state_dict], ids=['torch', 'mmengine'])
@pytest.mark.parametrize('schedule', [dict(rate=8), dict(rate=8, blocks=[1, 2]), dict(keep={2: 0.5})], ids=str)
def test_counted_pruners_find_their_blocks(load, schedule):
    trained, other = pruned(rate=8, blocks=[1, 2]), pruned(**{**schedule, 'blocks': None, **schedule})
    old = counted(trained.state_dict())
    assert 'pruners.0.queries' in old and 'pruners.2.queries' not in old
    if 0 in other.schedule.blocks:
        with pytest.raises(ValueError, match=r'pruners after blocks \[1, 2\], none after \[0\]'):
            load(other, old)
        return
    load(other, old)
    assert torch.equal(other.pruners['2'].queries, trained.pruners['2'].queries)


def test_counted_pruners_load_inside_a_model():
    trained, other = pruned(rate=8, blocks=[1, 2]), pruned(rate=8, blocks=[1, 2])
    model = torch.nn.ModuleDict({'backbone': other})
    state = {f'backbone.{name}': value for name, value in trained.state_dict().items()}
    model.load_state_dict(counted(state, 'backbone.'))
    assert torch.equal(other.pruners['1'].queries, trained.pruners['1'].queries)


def test_counted_pruners_without_weights_leave_nothing_over():
    random = dict(type='RandomPruner')
    state = {**small_vit().state_dict(), 'pruners.blocks': torch.tensor([0, 2])}
    torch_load(pruned(random, rate=8), state)
