"""FLOPs against the count by hand, and tokens per block against what the blocks are really given."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.utils import digit_version

from cropr_mm.analysis.flops import count_flops, pruned_ratio, tokens_per_block


@pytest.mark.parametrize('rate', [None, 4])
def test_flops_of_a_vit(rate):
    pruning = dict(pruner=cropr(), rate=rate, round_to=1) if rate else None
    model = small_vit(pruning=pruning).eval()
    expected = 2 * 36 * (3 * 4 * 4) * 16  # patch embedding
    for tokens in tokens_per_block(model, 24, 24):
        linear = tokens * 16 * (3 * 16 + 16) + 2 * tokens * 16 * 32
        attention = 2 * tokens * tokens * 16
        expected += 2 * (linear + attention)
    if rate:
        scored = [37, 33, 29]
        expected += sum(2 * 16 * (tokens - 1) for tokens in scored)
    assert count_flops(model, torch.randn(1, 3, 24, 24)) == expected


@pytest.mark.parametrize('pruning', [None, dict(rate=8), dict(rate=8, fusion=None), dict(keep={1: 0.2})])
def test_tokens_per_block(pruning):
    model = small_vit(pruning=pruning and dict(pruning, pruner=cropr())).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        model(torch.randn(1, 3, 20, 32))
    assert tokens_per_block(model, 20, 32) == seen
    least = min(seen if not pruning or pruning.get('fusion', 1) is None else seen[:-1])
    assert pruned_ratio(model, 20, 32) == pytest.approx(1 - least / seen[0])


# Fake CUDA tensors, as on a GPU in half precision: products asked for in float32, windows as sequences.
ON_CUDA = """
import sys
import torch
from torch._subclasses import FakeTensorMode
from helpers import small_vit, to_fake_cuda
from cropr_mm.analysis.flops import count_flops
torch.cuda.get_device_capability = lambda device=None: (8, 0)
pruning = dict(pruner=dict(type='DifficultyPruner', num_classes=3), rate=4, round_to=1)
model = small_vit(pruning=pruning, window_size=3, arch=dict(class_token=False, embed_dim=32)).eval()
with FakeTensorMode():
    to_fake_cuda(model, torch.bfloat16)
    images = torch.rand(2, 3, 24, 24, device='cuda', dtype=torch.bfloat16)
    with torch.no_grad():
        for what in sys.argv[1:]:
            if what == 'run':
                model(images)
            else:
                print(count_flops(model, images))
"""


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.10'), reason='PyTorch 2.10 brought sequences of other lengths'
)
def test_flops_on_cuda_do_not_depend_on_what_ran_before():
    tests = os.path.dirname(os.path.dirname(__file__))
    paths = os.pathsep.join([tests, os.path.dirname(tests), *filter(None, [os.environ.get('PYTHONPATH')])])

    def counted(*order):  # in a new process: what has been imported and asked counts
        command = [sys.executable, '-W', 'ignore', '-c', ON_CUDA, *order]
        output = subprocess.run(command, env=dict(os.environ, PYTHONPATH=paths), stdout=subprocess.PIPE, check=True)
        return [int(line) for line in output.stdout.split()]

    first, again = counted('count', 'count')
    assert first == again == counted('run', 'count')[0]
