"""The pre-training crops as a data set for image classification; nothing is read from disk."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..utils.checks import check_integer
from .classes import THINGS
from .scenes import CROP_SIZE, draw_crop


@DATASETS.register_module()
class SampleCrops(BaseDataset):
    """Crops of 32 × 32 pixels with one object each, drawn when they are asked for; the class is the object's.

    The pipeline gets ``img`` (32, 32, 3) uint8 in BGR, as mmcv loads images, and ``gt_label``, an index into
    ``THINGS``; mmpretrain's ``PackInputs`` takes it from there.

    Args:
        count: crops in the data set.
        first: number of the first one; ranges that do not overlap share no image.
        seed: another seed gives other crops. The shipped weights were pre-trained on seed 0.
        settings: arguments of mmengine's BaseDataset (``pipeline``, ``indices``, ...).

    Raises:
        ValueError: a number out of range.
    """

    METAINFO = dict(classes=THINGS)  # noqa: RUF012 (mmengine's interface)

    def __init__(self, count: int, first: int = 0, seed: int = 0, **settings: Any) -> None:
        for key, value, least in (('count', count, 1), ('first', first, 0), ('seed', seed, 0)):
            check_integer(f'SampleCrops.{key}', value, least)
        self.count, self.first, self.seed = count, first, seed
        super().__init__(**settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(crop=self.first + i) for i in range(self.count)]

    def prepare_data(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        image, _, category = draw_crop(self.seed, info['crop'])
        shape = (CROP_SIZE, CROP_SIZE)
        info.update(img=image[..., ::-1].copy(), img_shape=shape, ori_shape=shape, gt_label=category)
        return self.pipeline(info)
