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


def object_share(
    sample: Any, grid: tuple[int, int], patch_size: int, object_classes: Sequence[int] | None = None
) -> Tensor:
    """Share of each patch that objects cover.

    Args:
        sample: a data sample with ``gt_instances.masks`` (detection: all instances are objects) or
            ``gt_sem_seg`` (segmentation: the classes in ``object_classes`` are).
        grid: (H, W), the patch grid of the padded image.
        patch_size: pixels per patch side.
        object_classes: label values of objects; needed with ``gt_sem_seg`` alone.

    Returns:
        (H * W,) float32, 0 to 1, in raster order.

    Raises:
        ValueError: the sample has neither masks nor, with ``object_classes``, a label map.
    """
    if 'gt_instances' in sample and 'masks' in sample.gt_instances:
        masks = sample.gt_instances.masks
        stack = torch.as_tensor(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks)
        covered = stack.bool().any(dim=0) if len(stack) else torch.zeros(sample.img_shape[:2], dtype=torch.bool)
    elif 'gt_sem_seg' in sample and object_classes is not None:
        label = label_map(sample, 'object_share')[0]
        covered = torch.isin(label, torch.tensor(list(object_classes), device=label.device))
    else:
        raise ValueError('object_share needs gt_instances with masks, or gt_sem_seg and object_classes')
    pixels = covered.float()[None, None]
    height, width = grid[0] * patch_size, grid[1] * patch_size
    # Test pipelines leave the labels at the size of the file, training ones at that of the batch.
    meta, size = sample.metainfo, tuple(pixels.shape[-2:])
    if 'img_shape' in meta and size == tuple(meta.get('ori_shape', ())[:2]):
        pixels = F.interpolate(pixels, size=tuple(meta['img_shape'][:2]), mode='nearest')
    pixels = F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))
    return F.avg_pool2d(pixels, patch_size).flatten()


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
