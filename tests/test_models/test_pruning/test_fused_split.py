"""The Triton kernel, in Triton's interpreter, against :func:`cropr_mm.tokens.split`; and that CUDA can compile it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_vit

from cropr_mm import BaseReducer
from cropr_mm.models.pruning import base

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(sys.prefix) / 'triton'  # where set-up puts it, away from torch
PRUNING = dict(pruner=dict(type='DifficultyPruner', num_classes=3), rate=6, round_to=1)

COMPARE = """
import math, random, torch
from cropr_mm.models.pruning.fused_split import CHUNK, fused_split
from cropr_mm.tokens import Tokens, split

NASTY = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])
random.seed(0), torch.manual_seed(0)
for case in range(24):
    batch, patches = random.randint(1, 3), random.randint(2, 2 * CHUNK)
    prefix, dim = random.choice((0, 1, 5)), random.randint(1, 150)
    count, room = random.randint(1, patches - 1), patches + random.randint(0, 9)
    ids = [[*range(room, room + prefix), *random.sample(range(room), patches)] for _ in range(batch)]
    dtype = random.choice((torch.float32, torch.float16, torch.bfloat16))
    tokens = Tokens(torch.randn(batch, prefix + patches, dim).to(dtype), torch.tensor(ids), prefix)
    scores = NASTY[torch.randint(6, (batch, patches))] if case % 2 else torch.randn(batch, patches)
    padding = torch.rand(batch, room) < 0.3 if case % 3 else None
    masked = scores if padding is None else scores.masked_fill(padding.gather(1, tokens.position), -math.inf)
    (kept, pruned), (k, p) = split(tokens, masked, count, in_order=False), fused_split(tokens, scores, count, padding)
    assert torch.equal(k.x, kept.x) and torch.equal(k.all_positions, kept.all_positions) and k.num_prefix == prefix
    assert torch.equal(p.x, pruned.x) and torch.equal(p.position, pruned.position), case
print('equal')
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cropr_mm.models.pruning import fused_split as module

kernel = module._rank_and_move
known = dict(PADDED=True, TOKENS=module.TOKENS, CHUNK=module.CHUNK, CHANNELS=module.CHANNELS)
kinds = dict(position='*i64', kept_at='*i64', pruned_at='*i64', scores='*fp32', padding='*u8')
for dtype in ('*fp16', '*bf16', '*fp32'):
    own = {name: dtype for name in ('x', 'kept', 'pruned')}
    names = [parameter.name for parameter in kernel.params]
    signature = {n: 'constexpr' if n in known else {**kinds, **own}.get(n, 'i32') for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=known)
    assert triton.compile(source, target=GPUTarget('cuda', 90, 32)).asm['cubin']
print('compiled')
"""


def run_with_triton(script, tmp_path, **environ):
    """Run a script that sees Triton."""
    if not FOLDER.exists():
        pytest.skip(f'needs triton in {FOLDER} (make setup)')
    environ.update(PYTHONPATH=os.pathsep.join([str(ROOT), str(FOLDER)]), TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, '-W', 'ignore', '-c', script]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernel_equals_split_to_the_bit(tmp_path):
    assert 'equal' in run_with_triton(COMPARE, tmp_path, TRITON_INTERPRET='1')


def test_the_kernel_compiles_for_cuda(tmp_path):
    assert 'compiled' in run_with_triton(COMPILE, tmp_path)


def test_it_is_used_at_inference_on_cuda_alone(monkeypatch):
    model = small_vit(pruning=PRUNING).eval()
    plain = small_vit(pruning=dict(PRUNING, fused=False)).eval()
    plain.load_state_dict(model.state_dict())
    images, calls = torch.randn(2, 3, 24, 24), []
    assert torch.equal(model(images)[0].to_dense(), plain(images)[0].to_dense())

    def kernel(tokens, scores, count, padding):
        calls.append(count)
        masked = scores.masked_fill(padding.gather(1, tokens.position), -torch.inf)
        return base.split(tokens, masked, count, in_order=False)

    monkeypatch.setattr(base, '_kernel', lambda needed: kernel)
    with torch.no_grad():
        model(images)
        assert not calls  # a CPU
        monkeypatch.setattr(base, '_fits_kernel', lambda tokens, context: True)
        assert torch.equal(model(images)[0].to_dense(), plain(images)[0].to_dense())
    assert calls == model.schedule.counts((6, 6), 1)


def test_what_cannot_be_fused_is_refused():
    class Merger(BaseReducer):
        pass

    with pytest.raises(ValueError, match=r'pruning\.fused=True with pruning\.pruner\.type=.*Merger.*; a BasePruner'):
        small_vit(pruning=dict(pruner=dict(type=Merger), rate=6, fused=True))
    with pytest.raises(ValueError, match=r"pruning\.fused='yes'; True or False"):
        small_vit(pruning=dict(PRUNING, fused='yes'))


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    monkeypatch.delitem(sys.modules, 'cropr_mm.models.pruning.fused_split', raising=False)
    find = base._kernel.__wrapped__
    assert find(False) is None
    with pytest.raises(ModuleNotFoundError, match=r'pruning\.fused=True needs Triton .*: pip install triton'):
        find(True)
