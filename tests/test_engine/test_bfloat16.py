"""bfloat16 where mmcv has no kernels for it, and what FSDP's mixed precision leaves alone."""

import copy
import importlib
import math

import pytest
import torch
import torch.distributed as dist
from helpers import cropr, shards_on_a_cpu, small_vit
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import MixedPrecision

from cropr_mm import CroprHook
from cropr_mm.cli.model import build_model
from cropr_mm.engine import let_mmcv_take_bfloat16, wrap_vit_blocks

from ..test_heads import steps, table


# As FSDP's mixed precision does it (weights and images), and as --amp does.
@pytest.mark.parametrize('folder, weights', [('mask_rcnn', True), ('faster_rcnn', False), ('dino', False)])
def test_detectors_train_and_predict_in_bfloat16(folder, weights):
    configs = steps.config_folder(pytest.importorskip('mmdet'))
    importlib.import_module('mmdet.models')
    entry = table.MMDET[folder]
    cfg = steps.swapped(configs, folder, entry)
    model = build_model(copy.deepcopy(cfg)).train()
    model.init_weights()  # until then DINO's level embedding is memory as it was found
    CroprHook(ramp=0).attach(model)
    CroprHook().before_run(None)
    if weights:
        model.to(torch.bfloat16)

    def run(mode, training):
        batch = model.data_preprocessor(steps.det_batch(cfg, entry), training)
        if weights:
            batch['inputs'] = batch['inputs'].bfloat16()
        with torch.autocast('cpu', torch.bfloat16, enabled=not weights):
            return model(**batch, mode=mode)

    loss, log = model.parse_losses(run('loss', True))
    loss.backward()
    assert math.isfinite(loss) and log['cropr.loss_aux'] > 0
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        assert len(run('predict', False)) == 2


def test_regions_are_pooled_as_in_float32():
    ops = pytest.importorskip('mmcv.ops')
    let_mmcv_take_bfloat16()
    maps = torch.randn(1, 4, 8, 8).bfloat16()
    boxes = torch.tensor([[0, 4.5, 3, 27, 22]])
    results = []
    for x in (maps.clone(), maps.float()):
        x.requires_grad_()
        out = ops.RoIAlign(3, 0.25, 2)(x, boxes.to(x.dtype))
        out.sum().backward()
        assert out.dtype == x.grad.dtype == x.dtype
        results.append((out, x.grad))
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs.bfloat16())
    assert let_mmcv_take_bfloat16() == 0  # once is enough


def test_the_kernel_of_deformable_attention_is_given_float32(monkeypatch):
    """On a stand-in for the kernel, which exists for CUDA alone."""
    module = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')
    let_mmcv_take_bfloat16()
    seen = []

    class Kernel:
        @staticmethod
        def ms_deform_attn_forward(value, shapes, start, locations, weights, im2col_step):
            seen.append({value.dtype, locations.dtype, weights.dtype})
            return module.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)

        @staticmethod
        def ms_deform_attn_backward(value, shapes, start, locations, weights, grad, *grads, im2col_step):
            seen.append({t.dtype for t in (value, locations, weights, grad, *grads)})
            grads[0].copy_(torch.ones_like(value))

    monkeypatch.setattr(module, 'ext_module', Kernel)
    value = torch.randn(1, 16, 2, 4).bfloat16().requires_grad_()
    places = torch.rand(1, 3, 2, 1, 2, 2).bfloat16()
    weights = torch.full((1, 3, 2, 1, 2), 0.5).bfloat16()
    shapes, start = torch.tensor([[4, 4]]), torch.tensor([0])
    out = module.MultiScaleDeformableAttnFunction.apply(value, shapes, start, places, weights, 64)
    expected = module.multi_scale_deformable_attn_pytorch(value.float(), shapes, places.float(), weights.float())
    assert torch.equal(out, expected.bfloat16())
    out.sum().backward()
    assert seen == [{torch.float32}] * 2 and value.grad.dtype == torch.bfloat16 and (value.grad == 1).all()


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@shards_on_a_cpu
@pytest.mark.parametrize('window_size', [None, 3])
@pytest.mark.parametrize('family', ['eva02', 'dinov3'])
def test_sharding_in_mixed_precision_rounds_no_angles(process_group, family, window_size):
    arch = dict(embed_dim=32, num_registers=0, class_token=window_size is None)
    settings = dict(window_size=window_size, global_blocks=[3] if window_size else (), arch=arch)

    def model(with_cp=False):
        torch.manual_seed(0)
        return small_vit(family, dict(pruner=cropr(), rate=4), with_cp=with_cp, **settings).train()

    images, gradients = torch.randn(2, 3, 24, 24), []
    expected = model().bfloat16()(images.bfloat16())[0].to_dense()
    mixed = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for with_cp in (False, True):
        sharded = FSDP(
            model(with_cp),
            auto_wrap_policy=wrap_vit_blocks,
            use_orig_params=True,
            device_id=torch.device('cpu'),
            mixed_precision=mixed,
        )
        out = sharded(images)[0].to_dense()
        assert torch.equal(out, expected)
        out.float().square().sum().backward()
        gradients.append([p.grad.clone() for p in sharded.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*gradients))
