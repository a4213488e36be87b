"""Training steps in mixed precision."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper

from cropr_mm import CroprHook
from cropr_mm.models.layers import DropPath

from .small import ATTENTION, FAMILIES, LABELS, PRUNERS, on, pruned, samples


class Model(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        (level,) = self.backbone(inputs)
        return dict(loss=level.to_dense().float().square().mean()) if mode == 'loss' else level.to_dense()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_step(model, device, dtype, kind):
    """Gradients of a step are finite, and the auxiliary losses reach the pruners and nothing else."""
    model, images, labels = on(device, model).train(), torch.randn(2, 3, 24, 24).to(device), samples(kind, device)
    scale = 256.0 if dtype == torch.float16 else 1.0  # as a scaler does
    for part in ('aux', 'all'):
        model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, dtype):
            (level,) = model(images)
            loss = model.aux_losses(labels)['loss_aux']
            if part == 'all':
                loss = loss + level.to_dense().float().square().mean()
        (loss * scale).backward()
        found = gradients(model)
        assert all(gradient.isfinite().all() for gradient in found.values())
        learning = {name for name, gradient in found.items() if gradient.any()}
        assert {f'pruners.{block}.queries' for block in model.pruners} <= learning
        reached = {name.partition('.')[0] for name in learning}
        assert reached == {'pruners'} if part == 'aux' else {'pruners', 'blocks', 'patch_embed'} <= reached


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize('family', FAMILIES)
def test_families(device, family, attention, dtype):
    settings = dict(with_cp=family == 'eva02', drop_path_rate=0.1, **ATTENTION[attention])
    check_step(pruned(PRUNERS['difficulty'], family, **settings), device, dtype, 'map')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('pruner, kind', [(pruner, kind) for pruner, kinds in LABELS.items() for kind in kinds])
def test_pruners(device, pruner, kind, dtype):
    check_step(pruned(PRUNERS[pruner]), device, dtype, kind)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mmengine_trains(gpu, dtype):
    """With its own scaler; after a few steps weights have moved, and are finite."""
    model = Model(pruned(PRUNERS['difficulty'])).to(gpu).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    CroprHook(ramp=0).attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = AmpOptimWrapper(optimizer=optimizer, dtype=dtype, loss_scale='dynamic')
    batch = dict(inputs=torch.randn(2, 3, 24, 24, device=gpu), data_samples=samples('map', gpu))
    for _ in range(4):  # a scaler's first steps may overflow, and then change nothing
        log = model.train_step(batch, wrapper)
    assert log['cropr.loss_aux'] > 0
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    for name in ('backbone.pruners.0.queries', 'backbone.blocks.0.mlp.fc1.weight'):
        assert not torch.equal(dict(model.named_parameters())[name], before[name])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_drop_path_drops_whole_samples_and_keeps_the_mean(device, dtype):
    x = torch.ones(4096, 2, 3, device=device, dtype=dtype)
    out = DropPath(0.25).to(device)(x).float()
    value = torch.tensor(1 / 0.75).to(dtype).float().item()
    assert set(out.unique().tolist()) == {0.0, value}
    assert (out == out[:, :1, :1]).all() and out.mean().item() == pytest.approx(1, abs=0.06)
