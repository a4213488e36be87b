"""Models and batches of these tests, made on the CPU so that every device gets the same."""

from __future__ import annotations

import copy

import helpers
import torch
from helpers import cropr, small_vit
from mmengine.structures import BaseDataElement, InstanceData, PixelData

DIFFICULTY = helpers.PRUNERS['difficulty']
NO_PREFIX = dict(class_token=False, num_registers=0)
WINDOWS = dict(window_size=3, global_blocks=[2])
# What decides how attention is computed: everyone; windows with prefix tokens; windows that a kernel takes.
ATTENTION = {
    'global': {},
    'windows': WINDOWS,
    'windows alone': dict(arch=NO_PREFIX, **WINDOWS),
}
FAMILIES = ('vit', 'eva02', 'dinov2', 'dinov3')
PRUNERS = {**helpers.PRUNERS, 'norm': cropr('MultiLabelAuxHead', pre_norm=True, qkv_proj=True)}
LABELS = {**helpers.LABELS, 'norm': ('map',)}


def pruned(pruner=DIFFICULTY, family='vit', **settings):
    return small_vit(family, dict(pruner=pruner, rate=6, round_to=1), **settings)


def on(device, model, dtype=torch.float32):
    """A copy of a model."""
    return copy.deepcopy(model).to(device, dtype)


def samples(kind, device, count=2):
    """Data samples with labels of one kind, there."""
    return [_sample(kind).to(device) for _ in range(count)]


def _sample(kind):
    if kind == 'map':
        return BaseDataElement(gt_sem_seg=PixelData(data=torch.randint(3, (1, 24, 24))))
    if kind == 'boxes':
        corner = torch.rand(2, 2) * 12
        boxes = torch.cat([corner, corner + 8], dim=1)
        return BaseDataElement(gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0, 2])))
    if kind == 'score':
        return BaseDataElement(gt_score=torch.rand(3).softmax(0))
    return BaseDataElement(gt_label=torch.tensor([1]))


def distance(found, expected):
    """How far two tensors are apart, as a share of the length of the second."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm()).item()
