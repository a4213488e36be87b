"""Crops as a data set for classification."""

import numpy as np
import pytest

from cropr_mm.sample_data import THINGS, SampleCrops, draw_crop


def test_an_item_is_the_crop_and_its_object():
    dataset = SampleCrops(3, first=5, seed=1)
    assert len(dataset) == 3 and dataset.metainfo['classes'] == THINGS
    item = dataset[2]
    image, _, category = draw_crop(1, 7)
    np.testing.assert_array_equal(item['img'], image[..., ::-1])  # BGR, as mmcv has it
    assert item['gt_label'] == category and item['img'].flags.c_contiguous


@pytest.mark.parametrize('settings', [dict(count=0), dict(count=1, first=-1), dict(count=1, seed=0.5)])
def test_bad_numbers_are_named(settings):
    key = list(settings)[-1]
    with pytest.raises(ValueError, match=rf'SampleCrops.{key}={settings[key]}; .*integer'):
        SampleCrops(**settings)
