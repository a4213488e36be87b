"""Random images and labels in the form that each library's models read, for measurements."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor


def random_batch(
    scope: str, batch_size: int, height: int, width: int, num_classes: int, device: torch.device | str = 'cpu'
) -> dict[str, Any]:
    """A batch as it comes out of a data preprocessor, with labels of every kind that the library's heads learn from.

    Args:
        scope: ``'mmseg'``, ``'mmdet'`` or ``'mmpretrain'``; any other: label maps in plain data elements, for a
            backbone by itself.
        batch_size: images.
        height, width: in pixels.
        num_classes: labels are 0 … num_classes - 1.
        device: of images and labels.

    Returns:
        ``inputs`` (B, 3, H, W) and ``data_samples``.
    """
    make = dict(mmseg=_seg_sample, mmdet=_det_sample, mmpretrain=_cls_sample).get(scope, _plain_sample)
    samples = [make(height, width, num_classes).to(device) for _ in range(batch_size)]
    return dict(inputs=torch.randn(batch_size, 3, height, width, device=device), data_samples=samples)


def _meta(height: int, width: int) -> dict[str, Any]:
    keys = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return dict({key: (height, width) for key in keys}, scale_factor=(1.0, 1.0), flip=False, img_id=0)


def _label_map(height: int, width: int, num_classes: int) -> Tensor:
    """(1, H, W) int64: regions of a quarter of each side."""
    regions = torch.randint(num_classes, (1, 1, 4, 4)).float()
    return F.interpolate(regions, (height, width), mode='nearest')[0].long()


def _plain_sample(height: int, width: int, num_classes: int) -> Any:
    return BaseDataElement(gt_sem_seg=PixelData(data=_label_map(height, width, num_classes)))


def _seg_sample(height: int, width: int, num_classes: int) -> Any:
    from mmseg.structures import SegDataSample

    label = PixelData(data=_label_map(height, width, num_classes))
    return SegDataSample(metainfo=_meta(height, width), gt_sem_seg=label)


def _det_sample(height: int, width: int, num_classes: int, count: int = 8) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    corner, size = torch.rand(count, 2) * 0.7, 0.05 + 0.25 * torch.rand(count, 2)
    boxes = torch.cat([corner, corner + size], dim=1) * torch.tensor([width, height] * 2)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    found = InstanceData(bboxes=boxes, labels=torch.randint(num_classes, (count,)))
    found.masks = BitmapMasks(masks.numpy(), height, width)
    return DetDataSample(metainfo=_meta(height, width), gt_instances=found)


def _cls_sample(height: int, width: int, num_classes: int) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_meta(height, width)).set_gt_label(int(torch.randint(num_classes, (1,))))
