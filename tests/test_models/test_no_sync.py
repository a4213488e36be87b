"""Nothing in a forward pass or an auxiliary loss makes the host wait for a GPU: shown on fake tensors, without one.

A fake tensor has no values, so whatever asks for one (``.item()``, ``bool``, ``unique``, a boolean index) raises. They
are of the CPU, as a PyTorch without CUDA neither indexes nor differentiates those of CUDA; what the package asks a
device about is answered as a GPU would.
"""

import helpers
import pytest
import torch
from helpers import LABELS, small_vit, to_fake
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.utils import digit_version
from torch._subclasses import FakeTensorMode

from cropr_mm.models import windows
from cropr_mm.models.pruning import RandomPruner
from cropr_mm.models.pruning.supervision import targets

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.8'),
    reason='not every operator of older versions takes fake tensors',
)

DIFFICULTY = helpers.PRUNERS['difficulty']
PRUNERS = {**helpers.PRUNERS, 'random': dict(type='RandomPruner')}


@pytest.fixture(autouse=True)
def like_cuda(monkeypatch):
    monkeypatch.setattr(windows, '_sequence_kernel', lambda q: lambda query, *more: query)
    monkeypatch.setattr(targets, 'asserts', lambda wrong: True)


def sample(kind):
    device = 'cpu'
    if kind == 'map':
        return BaseDataElement(gt_sem_seg=PixelData(data=torch.zeros(1, 24, 24, dtype=torch.uint8, device=device)))
    if kind == 'boxes':
        labels = torch.zeros(2, dtype=torch.long, device=device)
        found = InstanceData(bboxes=torch.rand(2, 4, device=device), labels=labels)
        return BaseDataElement(gt_instances=found)
    if kind == 'score':
        return BaseDataElement(gt_score=torch.rand(3, device=device))
    return BaseDataElement(gt_label=torch.zeros(1, dtype=torch.long, device=device))


def forward(pruner, family='vit', training=False, **settings):
    model = small_vit(family, dict(pruner=pruner, rate=4, round_to=1), **settings).train(training)
    dtype = torch.float32 if training else torch.bfloat16
    with FakeTensorMode(), torch.set_grad_enabled(training):
        to_fake(model, dtype)
        (level,) = model(torch.rand(2, 3, 24, 24, dtype=dtype))
        assert level.to_dense().shape == (2, model.embed_dims, 6, 6)


def auxiliary_loss(pruner, kind, recompute=False):
    pruning = dict(pruner=PRUNERS[pruner], rate=4, round_to=1, aux_recompute=recompute)
    model = small_vit(pruning=pruning).train()
    with FakeTensorMode():
        to_fake(model)
        model(torch.rand(2, 3, 24, 24))
        loss = model.aux_losses([sample(kind), sample(kind)])['loss_aux']
        loss.backward()
        assert loss.shape == ()


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('window_size', [None, 3, 4])
@pytest.mark.parametrize('family', ['vit', 'eva02', 'dinov2', 'dinov3'])
def test_a_forward_pass_never_waits(family, window_size, training):
    forward(DIFFICULTY, family, training, window_size=window_size, global_blocks=[2] if window_size else ())


@pytest.mark.parametrize('training', [False, True])
def test_nor_do_windows_without_prefix_tokens(training):
    forward(DIFFICULTY, 'vit', training, window_size=3, arch=dict(class_token=False, embed_dim=32))


@pytest.mark.parametrize('pruner', PRUNERS)
def test_no_pruner_waits(pruner):
    forward(PRUNERS[pruner])


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kind', ['ToMeReducer', 'ALGMReducer', 'ExpeditReducer'])
def test_no_reducer_waits(kind, training):
    forward(dict(type=kind), training=training)


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('pruner, kind', [(pruner, kind) for pruner, kinds in LABELS.items() for kind in kinds])
def test_no_auxiliary_loss_waits(pruner, kind, recompute):
    auxiliary_loss(pruner, kind, recompute)


@pytest.mark.parametrize('look', [lambda wrong: bool(wrong), lambda wrong: wrong.nonzero().numel() > 0])
def test_one_that_waits_is_found(monkeypatch, look):
    monkeypatch.setattr(targets, 'is_wrong', lambda wrong, message: look(wrong))
    with pytest.raises(Exception, match=r'_local_scalar_dense|nonzero'):
        auxiliary_loss('patch', 'map')


def test_one_that_waits_in_a_forward_pass_is_found(monkeypatch):
    score = RandomPruner.score
    monkeypatch.setattr(RandomPruner, 'score', lambda self, x, *more: score(self, x, *more) * x.x.sum().item())
    with pytest.raises(Exception, match='_local_scalar_dense'):
        forward(PRUNERS['random'])


def test_the_device_checks_the_classes(monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, '_assert_async', lambda fits, message: asserted.append(message))
    with FakeTensorMode():
        targets.check_classes(torch.zeros(3, dtype=torch.long), 3, 255, 'PatchSegAuxHead')
    words = 'PatchSegAuxHead: num_classes=3, but the labels of the batch hold another class; 0 to 2 and 255 (ignored)'
    assert asserted == [f'{words} are valid']
    assert len(asserted[0]) < 250
