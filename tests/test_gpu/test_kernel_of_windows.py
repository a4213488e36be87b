"""Attention within windows on a GPU against its definition in float64, with gradients."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.utils import digit_version

from cropr_mm.models import windows as module
from cropr_mm.models.windows import Windows, count_windows, window_ids, windowed_attention

from .small import distance

GRID, SIZE = (12, 16), 4  # 12 windows


def some_windows(kept, device, prefix=0):
    """Windows of which random tokens are left, others in each of two samples; the first sample's last one is empty."""
    ids = window_ids(GRID, SIZE)
    full = ids[ids < count_windows(GRID, SIZE) - 1]
    left = torch.stack([full[torch.randperm(len(full))[:kept]], ids[torch.randperm(len(ids))[:kept]]])
    return Windows(left.sort(dim=1).values.to(device), count_windows(GRID, SIZE), SIZE**2, prefix, False)


def definition(q, k, v, windows):
    ids = F.pad(windows.window_id, (windows.prefix, 0), value=-1)
    near = (ids[:, :, None] == ids[:, None]) | (ids[:, :, None] < 0) | (ids[:, None] < 0)
    logits = torch.einsum('bqhd,bkhd->bhqk', q, k) / q.shape[-1] ** 0.5
    return torch.einsum('bhqk,bkhd->bqhd', logits.masked_fill(~near[:, None], -torch.inf).softmax(-1), v)


@pytest.mark.parametrize('prefix', [0, 2])
@pytest.mark.parametrize('channels', [8, 64])
@pytest.mark.parametrize('kept', [150, 60, 9])
@pytest.mark.parametrize(
    'dtype, most', [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)], ids=lambda v: str(v)
)
def test_outputs_and_gradients(device, dtype, most, kept, channels, prefix):
    windows = some_windows(kept, device, prefix)
    shape = (2, prefix + kept, 3, channels)
    parts = [torch.randn(shape).to(device, dtype).requires_grad_() for _ in range(3)]
    weight = torch.randn(shape).to(device, dtype)
    found = windowed_attention(*parts, windows)
    wide = [part.detach().double().requires_grad_() for part in parts]
    expected = definition(*wide, windows)
    assert found.dtype == dtype and distance(found, expected) < most
    gradients = torch.autograd.grad((found * weight).sum(), parts)
    theirs = torch.autograd.grad((expected * weight.double()).sum(), wide)
    for gradient, other in zip(gradients, theirs):
        assert distance(gradient, other) < most


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.10'), reason='PyTorch 2.10 brought the kernel')
def test_half_precision_takes_the_kernel_of_sequences(gpu):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip('needs an Ampere GPU')
    kernel = module._sequence_kernel(torch.zeros(1, 4, 2, 8, device=gpu, dtype=torch.bfloat16))
    assert kernel.__name__ == 'varlen_attn'
    assert module._sequence_kernel(torch.zeros(1, 4, 2, 8, device=gpu)) is None
