"""Small models of all three tasks with predictions that depend on every token, and images for them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from helpers import small_vit
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from cropr_mm import TokenReinsertion
from cropr_mm.report.contenders import Contender
from cropr_mm.report.trace import find_backbone

CLASSES = ('sky', '<b>road</b> & "way"', 'bird')
PALETTE = ((120, 140, 160), (200, 60, 40), (40, 160, 80))
SIDE, PATCH = 24, 4


class Segmentor(BaseModel):
    """A linear head on the tokens."""

    def __init__(self, pruning: Any = None, **settings: Any) -> None:
        super().__init__(data_preprocessor=dict(type='ImgDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3))
        self.backbone = small_vit(pruning=pruning, **settings)
        self.neck, self.head = TokenReinsertion(), torch.nn.Conv2d(16, len(CLASSES), 1)

    def maps(self, inputs: Any) -> Any:
        return self.neck(self.backbone(inputs))[-1]

    def logits(self, inputs: Any) -> Any:
        logits = F.interpolate(self.head(self.maps(inputs)), scale_factor=self.backbone.patch_size, mode='bilinear')
        return logits[..., : inputs.shape[2], : inputs.shape[3]]

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        for sample, found in zip(data_samples, self.logits(inputs).argmax(1, keepdim=True)):
            sample.pred_sem_seg = PixelData(data=found[..., : sample.img_shape[0], : sample.img_shape[1]])
        return data_samples


class Slider(Segmentor):
    """Predicts in the windows of mmsegmentation's ``slide`` mode: of 36 columns from 0, 10 and 12."""

    test_cfg = MappingProxyType(dict(mode='slide', crop_size=(SIDE, SIDE), stride=(SIDE, 10)))

    def logits(self, inputs: Any) -> Any:
        whole = inputs.new_zeros(len(inputs), len(CLASSES), *inputs.shape[2:])
        for left in (0, 10, 12):
            whole[..., left : left + SIDE] += super().logits(inputs[..., left : left + SIDE])
        return whole


class Detector(Segmentor):
    """Predicts two boxes that depend on the tokens."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        for sample, found in zip(data_samples, self.maps(inputs).mean((2, 3))):
            x, y = (8 + 4 * found[:2].tanh()).tolist()
            boxes = torch.tensor([[x, y, x + 8, y + 8], [1.0, 1.0, 6.0, 7.0]])
            found = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]), scores=torch.tensor([0.9, 0.5]))
            sample.pred_instances = found
        return data_samples


class Classifier(Segmentor):
    """One vector for the image."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        for sample, found in zip(data_samples, self.head(self.maps(inputs)).mean((2, 3)).softmax(1)):
            sample.pred_score = found
        return data_samples


def item(row: int = 0, size: tuple[int, int] = (SIDE, SIDE), labels: bool = True, **more: Any) -> dict[str, Any]:
    """An image of a data set, with a label map whose last row has no label."""
    made = np.random.default_rng(row)
    smooth = made.integers(0, 256, (3, 3, 3)).repeat(size[0] // 3, 1).repeat(size[1] // 3, 2)
    sample = BaseDataElement(metainfo=dict(img_shape=size, ori_shape=size, img_path=f'a/{row} <é>&.jpg'))
    if labels:
        label = torch.from_numpy(made.integers(0, 3, (3, 3)).repeat(size[0] // 3, 0).repeat(size[1] // 3, 1))
        label[-1] = 255
        sample.gt_sem_seg = PixelData(data=label[None])
    for key, value in more.items():
        setattr(sample, key, value)
    return dict(inputs=torch.from_numpy(smooth).to(torch.uint8), data_samples=sample)


def boxed(row: int = 0) -> dict[str, Any]:
    boxes = torch.tensor([[7.0, 8.0, 15.0, 17.0], [1.0, 1.0, 6.0, 7.0], [16.0, 2.0, 23.0, 10.0]])
    return item(row, labels=False, gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([1, 2, 0])))


def labelled(row: int = 0) -> dict[str, Any]:
    return item(row, labels=False, gt_label=torch.tensor([row % 3]))


def contend(model: Any, items: Any, name: str, dense: bool = False) -> Contender:
    meta = dict(classes=CLASSES, palette=PALETTE)
    reduction = None if dense else find_backbone(model).reduction
    return Contender(name, f'about {name}', model.eval(), items, reduction, meta)
