"""FLOPs against the count by hand, and tokens per block against what the blocks are really given."""

import subprocess
import sys

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.utils import digit_version

from cropr_mm.benchmark.flops import count_flops, pruned_ratio, tokens_per_block
from cropr_mm.models.pruning.cropr import sums_in_float32


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


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.8'), reason='PyTorch 2.8 brought the product')
def test_products_in_float32_count_as_others():
    a, b = (torch.empty(2, *shape, dtype=torch.bfloat16, device='meta') for shape in ((1, 8), (8, 5)))
    assert (
        count_flops(lambda: torch.bmm(a, b, out_dtype=torch.float32)) == 2 * 2 * 8 * 5 == count_flops(torch.bmm, a, b)
    )


def test_counting_changes_nothing_that_is_asked_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    answers = []

    def ask():
        answers.append(sums_in_float32(torch.device('cuda'), torch.bfloat16))

    count_flops(ask)
    ask()
    assert answers == [digit_version(torch.__version__) >= digit_version('2.8')] * 2


def test_importing_the_package_leaves_the_compiler_alone_and_counting_knows_the_kernel_of_windows():
    """One new process for both, as both are about the first import: the compiler takes seconds to import, and only
    CUDA's kernel for windows needs it; once counted, a FLOP counter learns no new operator."""
    code = """
import mmengine.runner, sys
before = 'torch._dynamo' in sys.modules
import cropr_mm
print(before or 'torch._dynamo' not in sys.modules)
import cropr_mm.benchmark.flops, torch.utils.flop_counter as counter
print([operator for operator in counter.flop_registry])
"""
    output = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, text=True, check=True)
    alone, operators = output.stdout.splitlines()
    assert alone == 'True'
    assert '_varlen_attn' in operators or digit_version(torch.__version__) < digit_version('2.10')
