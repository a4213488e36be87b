"""Recorded graphs on stand-ins for what records; tests/test_gpu/test_graphs.py has the real ones."""

from contextlib import nullcontext

import pytest
import torch
from helpers import small_vit
from torch import nn

from cropr_mm import PlainViT, cuda_graphs, use_cuda_graphs

PRUNING = dict(pruner=dict(type='DifficultyPruner', num_classes=3), rate=6, round_to=1)


def tensors(features):
    for level in features:
        yield from (level.tokens, level.position, level.prefix)
        for part in level.removed:
            yield from part


def assert_equal(found, expected):
    found, expected = list(tensors(found)), list(tensors(expected))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.fixture
def recordings(monkeypatch):
    """Records as CUDA does: results lie in memory that each replay writes anew. Gives the shapes recorded."""
    shapes = []

    def record(call):
        result = call()
        shapes.append(tuple(level.tokens.shape for level in result))

        def replay():
            for old, new in zip(tensors(result), tensors(call())):
                if old is not None and not torch.equal(old, new):
                    old.copy_(new)

        return replay, result

    monkeypatch.setattr(cuda_graphs, 'record', record)
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setattr(cuda_graphs.GraphedForward, '_fits', lambda self, images: not self.vit.training)
    return shapes


@pytest.mark.parametrize('settings', [{}, dict(out_indices=(2, 4)), dict(window_size=3, global_blocks=[4])], ids=str)
@pytest.mark.parametrize('pruning', [None, PRUNING, dict(PRUNING, fusion=None)], ids=['dense', 'fusion', 'none'])
def test_each_shape_is_recorded_once_and_replayed(recordings, pruning, settings):
    model = small_vit(pruning=pruning, **settings).eval()
    twin = small_vit(pruning=pruning, **settings).eval()
    twin.load_state_dict(model.state_dict())
    use_cuda_graphs(model)
    sizes = [(1, 24, 24), (2, 24, 24), (1, 24, 32), (1, 24, 24), (2, 24, 24)]
    with torch.no_grad():
        images = [torch.randn(b, 3, h, w) for b, h, w in sizes]
        found = [model(x) for x in images]  # all of them are kept over later replays
        for features, x in zip(found, images):
            assert_equal(features, twin(x))
    assert len(recordings) == 3


def test_what_changes_the_graph_is_recorded_anew(recordings):
    model, x = small_vit(pruning=PRUNING).eval(), torch.randn(1, 3, 24, 24)
    use_cuda_graphs(model)
    with torch.inference_mode():
        model(x)
        for parameter in model.parameters():
            parameter.zero_()  # in the same place
        assert not model(x)[-1].tokens.any() and len(recordings) == 1
    model.schedule = small_vit(pruning=dict(PRUNING, rate=3)).schedule
    with torch.no_grad():
        model(x)
        assert len(recordings) == 2
        model.double()(x.double())
    assert len(recordings) == 3


def test_the_oldest_recording_is_dropped(recordings):
    model = small_vit().eval()
    use_cuda_graphs(model, most=2)
    with torch.no_grad():
        for batch in (1, 2, 3, 1):
            model(torch.randn(batch, 3, 24, 24))
    assert len(recordings) == 4 and len(model.forward.recorded) == 2


def test_a_cpu_and_training_run_as_before():
    model = nn.Sequential(small_vit(pruning=PRUNING))
    twin, x = small_vit(pruning=PRUNING), torch.randn(2, 3, 24, 24)
    twin.load_state_dict(model[0].state_dict())
    use_cuda_graphs(model)
    for training in (False, True):
        model.train(training), twin.train(training)
        assert_equal(model(x), twin(x))
    assert model[0].forward.recorded == {}


def test_models_without_a_vit_and_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match='Linear has no CroprViT or PlainViT'):
        use_cuda_graphs(nn.Linear(1, 1))
    with pytest.raises(ValueError, match='most=0'):
        use_cuda_graphs(PlainViT('vit-tiny', img_size=32), most=0)
