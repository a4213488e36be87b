"""On a GPU; skipped where there is none. Nothing but torch, mmengine and pytest is imported:

    python -m pytest tests/test_gpu --confcutdir tests/test_gpu

CROPR_TEST_DEVICE=cpu runs what a CPU can do there, which tests the tests.
"""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def device():
    """Where to compute: the GPU, or what CROPR_TEST_DEVICE names. Products in float32 are not rounded to TF32."""
    name = os.environ.get('CROPR_TEST_DEVICE', 'cuda')
    if name.startswith('cuda') and not torch.cuda.is_available():
        pytest.skip('needs a GPU')
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    yield name
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def gpu(device):
    """As ``device``, for what a CPU cannot do."""
    if not device.startswith('cuda'):
        pytest.skip('needs a GPU')
    return device
