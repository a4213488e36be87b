"""Figures of the benchmark against what they are defined as."""

import time
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from helpers import cropr, small_vit
from torch import nn
from torch._dynamo.testing import CompileCounter

from cropr_mm.benchmark.batches import random_batch
from cropr_mm.benchmark.measure import Setting, _training_step, draw, graphed, measure
from cropr_mm.benchmark.memory import peak_memory
from cropr_mm.benchmark.parts import time_parts
from cropr_mm.benchmark.variants import build_variants
from cropr_mm.models.pruning.supervision import targets

PRUNING = dict(pruner=cropr('PatchSegAuxHead'), rate=8)


def variants(training=False):
    return build_variants(lambda p: small_vit(pruning=p), PRUNING, ['dense', 'cropr', 'patch', 'random'], 3, training)


@pytest.mark.parametrize('training', [False, True])
def test_figures_go_together(training, tmp_path):
    batch = random_batch('', 2, 24, 24, 3)
    figures = measure(variants(training), batch, Setting(training=training, rounds=2))
    dense = figures['dense']
    assert dense['ratio_to_dense'] == dense['flops_limit'] == dense['share_of_flops_limit'] == 1
    for row in figures.values():
        assert row['images_per_second'] == pytest.approx(2000 / row['milliseconds'])
        assert row['ratio_to_dense'] == pytest.approx(dense['milliseconds'] / row['milliseconds'])
        assert row['flops_limit'] == pytest.approx(dense['gflops'] / row['gflops'])
        assert row['share_of_flops_limit'] == pytest.approx(row['ratio_to_dense'] / row['flops_limit'])
        assert ('milliseconds_of_parts' in row) != training
    assert figures['random']['gflops'] < dense['gflops']
    assert figures['random']['tokens_per_block'][-2:] == [16, 37] and figures['random']['tokens_pruned_ratio'] > 0.5
    if training:  # a query per patch costs operations, and memory, that random pruning does not
        assert figures['patch']['gflops'] > figures['random']['gflops']
        assert figures['patch']['peak_bytes'] > figures['random']['peak_bytes']
    assert draw(figures, tmp_path / 'speed.png').stat().st_size > 1000


def test_training_counts_about_three_forward_passes():
    batch = random_batch('', 2, 24, 24, 3)
    infer = measure({'dense': small_vit().eval()}, batch, Setting(rounds=1))
    train = measure({'dense': small_vit().train()}, batch, Setting(training=True, rounds=1))
    assert train['dense']['gflops'] / infer['dense']['gflops'] == pytest.approx(3, rel=0.1)


def test_targets_are_part_of_every_training_step(monkeypatch):
    asked = []
    step, _ = _training_step(variants(True)['cropr'], random_batch('', 2, 24, 24, 3), Setting(training=True))
    monkeypatch.setattr(targets, 'check_classes', lambda *a: asked.append(1))
    step()
    once = len(asked)
    step()
    assert len(asked) == 2 * once == 4  # for each of two images once, whatever the number of modules


def test_the_peak_of_a_training_step_has_the_gradients_whatever_ran_before():
    model = small_vit().train()
    figures = measure({'dense': model}, random_batch('', 1, 8, 8, 3), Setting(training=True, rounds=2))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert figures['dense']['peak_bytes'] > 4 * weights  # weights, two moments of AdamW, gradients
    assert all(p.grad is None for p in model.parameters())


def test_cuda_graphs_need_cuda_and_inference():
    for settings in (dict(cuda_graph=True), dict(cuda_graph=True, device='cuda', training=True)):
        with pytest.raises(ValueError, match='--cuda-graph: needs --device cuda'):
            Setting(**settings)


def test_a_device_that_is_not_there_is_named():
    for device in ('graphics', 'cuda:99'):
        with pytest.raises(ValueError, match=f"--device='{device}': .*; cpu, or cuda with a GPU and its driver"):
            Setting(device=device)


def test_what_no_graph_can_record_is_said(monkeypatch):
    """On stand-ins for what records."""
    for name in ('Stream', 'current_stream', 'stream', 'CUDAGraph'):
        monkeypatch.setattr(torch.cuda, name, lambda *args: MagicMock())
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph: nullcontext())
    calls = []

    def call():
        calls.append(1)
        if len(calls) == 4:  # after warming up
            raise RuntimeError('operation not permitted\nmore')

    with pytest.raises(ValueError, match=r'--cuda-graph: .* \(operation not permitted\); a back'):
        graphed(call)


# --- memory ---------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_alive_at_once():
    def one_after_the_other():
        for _ in range(4):
            torch.ones(1000, 1000)

    def together():
        return [torch.ones(1000, 1000) for _ in range(4)]

    assert peak_memory(one_after_the_other) == pytest.approx(4e6, rel=0.01)
    assert peak_memory(together) == pytest.approx(16e6, rel=0.01)
    with pytest.raises(ValueError, match=r"device='meta'"):
        peak_memory(together, 'meta')


# --- parts ----------------------------------------------------------------------------------------------------


class Segmentor(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = small_vit(pruning=PRUNING)
        self.neck = nn.Identity()

    def forward(self, images):
        return self.neck(self.backbone(images))[0].to_dense().square().sum()


PARTS = ['embedding', 'blocks', 'pruning', 'other']


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_parts_are_times_of_modules_and_leave_the_model_as_it_was():
    """A module that is slowed down lengthens its own part."""
    model, images = Segmentor().eval(), torch.randn(2, 3, 24, 24)
    before, backbone = model(images), model.backbone
    slow = dict(embedding=backbone.patch_embed, blocks=backbone.blocks[3], neck=model.neck)
    slow['pruning'] = next(backbone.pruners.children())
    for part, module in slow.items():
        with module.register_forward_hook(lambda *_: time.sleep(0.05)):
            parts = time_parts(model, lambda: model(images))
        assert max(parts, key=parts.get) == part and parts[part] >= 0.05
    parts = time_parts(model, lambda: model(images))
    assert list(parts) == [*PARTS, 'neck', 'head'] and all(seconds > 0 for seconds in parts.values())
    assert not hooks(model) and torch.equal(model(images), before)


def test_parts_of_a_backbone_by_itself():
    model, images = small_vit().eval(), torch.randn(2, 3, 24, 24)
    parts = time_parts(model, lambda: model(images))
    assert list(parts) == PARTS and parts['pruning'] == 0 < parts['blocks']


def test_compiled_blocks_count_as_the_rest():
    """Hooks would be compiled along with them."""
    model, images = small_vit().eval(), torch.randn(2, 3, 24, 24)
    counter = CompileCounter()
    model.compile_blocks(backend=counter)
    with torch.no_grad():
        model(images)
        compiled = counter.frame_count
        parts = time_parts(model, lambda: model(images))
    assert 'blocks' not in parts and parts['other'] > 0 and counter.frame_count == compiled


def test_a_call_that_fails_leaves_the_model_as_it_was():
    model = small_vit().eval()
    with pytest.raises(ValueError, match=r'images of shape'):
        time_parts(model, lambda: model(torch.randn(2, 5, 24, 24)))
    assert not hooks(model)


# --- compiled blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', ['vit', 'eva02'])
@pytest.mark.parametrize('window_size', [None, 3])
def test_blocks_are_not_compiled_anew_for_every_number_of_tokens(family, window_size):
    """Once for tokens at the same places in all samples, once for others; with windows, once for each way besides."""
    if torch.__version__.startswith('2.1.'):
        pytest.skip('PyTorch 2.1 compiles each block by itself')
    torch._dynamo.reset()
    arch = dict(depth=7, class_token=window_size is None, num_registers=0)
    pruning = dict(pruner=cropr(), rate=3, round_to=1)
    model = small_vit(family, pruning, arch=arch, window_size=window_size, drop_path_rate=0.1).eval()
    images, counter = torch.randn(2, 3, 24, 24), CompileCounter()
    with torch.no_grad():
        expected = model(images)[0].to_dense()
        model.compile_blocks(backend=counter)
        torch.testing.assert_close(model(images)[0].to_dense(), expected)
        most = 2 if window_size is None else 4
        assert 1 <= counter.frame_count <= most
        model(torch.randn(2, 3, 36, 20))
        assert counter.frame_count <= most


def test_windows_are_not_compiled_by_pytorch_2_1(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1.2+cu121')
    with pytest.raises(RuntimeError, match=r'window_size=3 and torch 2\.1\.2\+cu121'):
        small_vit(window_size=3).compile_blocks()
    small_vit().compile_blocks()


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, 'fail_on_recompile_limit_hit'), reason='older versions cannot raise at the limit'
)
@pytest.mark.parametrize('family', ['vit', 'dinov3'])
def test_every_block_is_compiled_in_training_with_drop_path(family):
    torch._dynamo.reset()
    model = small_vit(family, dict(pruner=cropr(), rate=2, round_to=1), arch=dict(depth=13), drop_path_rate=0.3).train()
    counter = CompileCounter()
    model.compile_blocks(backend=counter)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        model(torch.randn(2, 3, 24, 24))[0].tokens.sum().backward()
    # Blocks with drop path and the two without, for complete and for other sets of tokens.
    assert 1 <= counter.frame_count <= 4


# --- batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_batches_have_the_labels_of_their_library(scope):
    pytest.importorskip(scope)
    batch = random_batch(scope, 2, 32, 48, 5)
    assert batch['inputs'].shape == (2, 3, 32, 48)
    for sample in batch['data_samples']:
        assert sample.img_shape == (32, 48)
        if scope == 'mmseg':
            label = sample.gt_sem_seg.data
            assert label.shape == (1, 32, 48) and label.min() >= 0 and label.max() < 5
        else:
            boxes, masks = sample.gt_instances.bboxes, sample.gt_instances.masks
            assert (boxes[:, 2:] > boxes[:, :2]).all() and len(masks) == len(boxes)
            assert (boxes >= 0).all() and boxes[:, 2].max() <= 48 and boxes[:, 3].max() <= 32
