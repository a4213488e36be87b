"""Small models and data samples that several tests build."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.utils import digit_version
from torch import Tensor

from cropr_mm import CroprViT, Tokens
from cropr_mm.tokens import follow_owners

PYTORCH_2_1 = digit_version(torch.__version__) < digit_version('2.2')
shards_on_a_cpu = pytest.mark.skipif(PYTORCH_2_1, reason='FSDP of PyTorch 2.1 needs an accelerator')
exports_open_sizes = pytest.mark.skipif(PYTORCH_2_1, reason='torch.export of PyTorch 2.1 has no Dim')

SMALL: dict[str, dict[str, Any]] = {
    'vit': dict(family='vit', embed_dim=16, depth=5, num_heads=2, mlp_ratio=2.0),
    'eva02': dict(family='eva02', embed_dim=16, depth=5, num_heads=2, mlp_ratio=2.0),
    'dinov2': dict(family='dinov2', embed_dim=16, depth=5, num_heads=2, mlp_ratio=2.0, num_registers=2),
    'dinov3': dict(family='dinov3', embed_dim=16, depth=5, num_heads=2, mlp_ratio=2.0),
}


def small_vit(family: str = 'vit', pruning: dict[str, Any] | None = None, **settings: Any) -> CroprViT:
    """A CroprViT with lively random weights on a 6 × 6 grid of patches of 4 pixels."""
    arch = {**SMALL[family], **settings.pop('arch', {})}
    model = CroprViT(arch, **{'img_size': 24, 'patch_size': 4, 'pruning': pruning, **settings})
    return liven(model)


def liven(model: torch.nn.Module) -> Any:
    """Give every parameter a share of noise: biases of 0 and gains of 1 would hide a part that is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens_at(x: Tensor, position: Tensor) -> Tokens:
    """Tokens (B, P + M, D) whose patches are at these positions (B, M) of a grid of 12."""
    prefix = x.shape[1] - position.shape[1]
    return Tokens(x, torch.cat([torch.arange(12, 12 + prefix).expand(len(x), -1), position], dim=1), prefix)


def shared_positions(removed: Any, positions: int) -> Tensor:
    """(B, positions): where the token that stands for each position is, of parts that have one owner."""
    every = torch.arange(positions).expand(len(removed[0].position), -1)
    return follow_owners(torch.zeros(*every.shape, 1), every, removed)[1]


class Untouched(torch.nn.Module):
    """A block that does nothing."""

    def forward(self, x: Tensor, rotary: Any = None, windows: Any = None, size: Any = None) -> Tensor:
        return x


def cropr(head: str = 'MultiLabelAuxHead', num_classes: int = 3, **settings: Any) -> dict[str, Any]:
    return dict(type='CroprPruner', aux_head=dict(type=head, num_classes=num_classes), **settings)


PRUNERS: dict[str, dict[str, Any]] = {
    'difficulty': dict(type='DifficultyPruner', num_classes=3),
    'patch': cropr('PatchSegAuxHead'),
    'squares': dict(type='CroprPruner', aux_head=dict(type='PatchSegAuxHead', num_classes=3, query_stride=2)),
    'multi': cropr('MultiLabelAuxHead'),
    'class': cropr('ClsAuxHead'),
    'variance': dict(type='VariancePruner'),
    'attention': dict(type='AttentionPruner'),
}
# What each of them that learns can learn from.
LABELS: dict[str, tuple[str, ...]] = {
    'difficulty': ('map', 'boxes'),
    'patch': ('map',),
    'squares': ('map',),
    'multi': ('map', 'boxes', 'label', 'score'),
    'class': ('label', 'score'),
}


def seg_sample(label: Tensor) -> BaseDataElement:
    """A data sample as mmsegmentation's data sets give it, label (H, W)."""
    return BaseDataElement(gt_sem_seg=PixelData(data=label[None]))


def det_sample(labels: list[int]) -> BaseDataElement:
    """A data sample as mmdetection's data sets give it, as far as classes go."""
    return BaseDataElement(gt_instances=InstanceData(labels=torch.tensor(labels, dtype=torch.long)))


def to_fake(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """Give a model fake tensors, which have shapes and no values; for use within a ``FakeTensorMode``."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=dtype)
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=dtype))
    return model
