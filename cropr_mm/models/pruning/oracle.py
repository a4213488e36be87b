"""An oracle pruner for analysis: it keeps the tokens of objects, as the labels say.

It bounds what any learned pruner can gain on a data set, and so gives the figure of merit
``headroom recovered = (method − random) / (oracle − random)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ...tokens import Tokens
from .base import BasePruner, Context
from .supervision.targets import label_map


def object_pixels(sample: Any, size: Sequence[int], object_classes: Sequence[int] | None = None) -> Tensor:
    """Where objects are in an image.

    Args:
        sample: a data sample with ``gt_instances.masks`` (detection: all instances are objects) or
            ``gt_sem_seg`` (segmentation: the classes in ``object_classes`` are).
        size: (H, W) of the batch.
        object_classes: label values of objects; needed with ``gt_sem_seg`` alone.

    Returns:
        (H, W) float32, 1 on objects and 0 elsewhere, padding included.

    Raises:
        ValueError: the sample has neither masks nor, with ``object_classes``, a label map.
    """
    masks = instance_masks(sample)
    if masks is not None:
        covered = masks.any(dim=0)
    elif 'gt_sem_seg' in sample and object_classes is not None:
        label = label_map(sample, 'object_pixels')[0]
        covered = torch.isin(label, torch.tensor(list(object_classes), device=label.device))
    else:
        raise ValueError('object_pixels needs gt_instances with masks, or gt_sem_seg and object_classes')
    return at_batch_size(covered.float()[None], sample, size, 0)[0]


def instance_masks(sample: Any) -> Tensor | None:
    """Masks of the instances of a data sample, (instances, H, W) bool; None where it has none to tell of."""
    if 'gt_instances' not in sample or 'masks' not in sample.gt_instances:
        return None
    masks = sample.gt_instances.masks
    stack = torch.as_tensor(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks).bool()
    return stack if len(stack) else stack.new_zeros(0, *sample.img_shape[:2])


def at_batch_size(pixels: Tensor, sample: Any, size: Sequence[int], fill: float) -> Tensor:
    """Labels (C, H, W) at the size of the batch: test pipelines leave them at that of the file."""
    meta, pixels = sample.metainfo, pixels[None]
    if 'img_shape' in meta and tuple(pixels.shape[-2:]) == tuple(meta.get('ori_shape', ())[:2]):
        pixels = F.interpolate(pixels, size=tuple(meta['img_shape'][:2]), mode='nearest')
    return F.pad(pixels, (0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2]), value=fill)[0]


def in_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Maps (B, H, W) → their mean over each patch, (B, h, w); what a patch has beyond the border counts as 0."""
    return F.avg_pool2d(whole_patches(pixels, patch_size, 0), patch_size)


def whole_patches(pixels: Tensor, patch_size: int, fill: float) -> Tensor:
    """Pad maps (…, H, W) to whole patches."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % patch_size, 0, -height % patch_size), value=fill)


@MODELS.register_module()
class OraclePruner(BasePruner):
    """Keeps the tokens that objects cover most, ties broken at random.

    Needs :class:`~cropr_mm.engine.OracleHook`.
    """

    share: Tensor | None = None

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        position = tokens.position
        if self.share is None or self.share.shape != (len(position), context.grid[0] * context.grid[1]):
            raise RuntimeError(
                "OraclePruner has no labels for this batch; add custom_hooks=[dict(type='OracleHook', "
                'object_classes=[…])] and run it where data samples carry labels'
            )
        share = self.share.to(position.device).gather(1, position)
        return share + 1e-3 * torch.rand(position.shape, device=position.device)
