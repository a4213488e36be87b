"""Stock data sets, pipelines and metrics of mmsegmentation and mmdetection read what is written."""

import numpy as np
import pytest

from cropr_mm.sample_data import (
    CLASSES,
    METAINFO,
    PALETTE,
    STUFF,
    THING_METAINFO,
    THINGS,
    draw_scene,
    write_sample_data,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_sample_data(tmp_path_factory.mktemp('data') / 'sample', train=12, val=8, progress=False)


def test_names_and_colours_match():
    assert len(CLASSES) == len(set(CLASSES)) == len(PALETTE) == len(set(PALETTE)) == 9
    assert CLASSES[len(STUFF) :] == THINGS == THING_METAINFO['classes']
    assert THING_METAINFO['palette'] == PALETTE[len(STUFF) :]


@pytest.mark.parametrize('split, count', [('training', 12), ('validation', 8)])
def test_mmseg_reads_the_label_folder(data, split, count):
    pytest.importorskip('mmcv.ops')
    datasets = pytest.importorskip('mmseg.datasets')
    pytest.importorskip('mmseg.utils').register_all_modules(init_default_scope=False)
    dataset = datasets.BaseSegDataset(
        data_root=str(data),
        metainfo=METAINFO,
        reduce_zero_label=True,
        img_suffix='.jpg',
        seg_map_suffix='.png',
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
        pipeline=[
            dict(type='mmseg.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
            dict(type='mmseg.PackSegInputs'),
        ],
    )
    assert len(dataset) == count and dataset.metainfo['classes'] == CLASSES
    for index in (0, count - 1):
        scene, sample = draw_scene(0, index, split), dataset[index]
        np.testing.assert_array_equal(sample['data_samples'].gt_sem_seg.data[0].numpy(), scene.labels)
        bgr = sample['inputs'].numpy().transpose(1, 2, 0).astype(float)
        assert abs(bgr[..., ::-1] - scene.image).mean() < 5, 'more than what JPEG loses'


def coco_dataset(data, split):
    pytest.importorskip('mmcv.ops')
    datasets = pytest.importorskip('mmdet.datasets')
    pytest.importorskip('mmdet.utils').register_all_modules(init_default_scope=False)
    return datasets.CocoDataset(
        data_root=str(data),
        metainfo=THING_METAINFO,
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'images/{split}/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'ori_shape')),
        ],
    )


def test_mmdet_reads_boxes_and_masks(data):
    dataset = coco_dataset(data, 'training')
    assert len(dataset) == 12 and dataset.metainfo['classes'] == THINGS
    for index in range(12):
        scene, found = draw_scene(0, index), dataset[index]['data_samples'].gt_instances
        assert found.labels.tolist() == list(scene.categories)
        np.testing.assert_array_equal(found.masks.masks.astype(bool), scene.masks)
        for mask, box in zip(scene.masks, found.bboxes.tensor.tolist()):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_the_truth_scores_full_marks_with_coco(data):
    dataset = coco_dataset(data, 'validation')
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=str(data / 'annotations' / 'instances_validation.json'), metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    for sample in (dataset[index]['data_samples'] for index in range(len(dataset))):
        truth = sample.gt_instances
        found = dict(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            masks=truth.masks.to_tensor(bool, 'cpu'),
            scores=truth.bboxes.tensor.new_ones(len(truth)),
        )
        metric.process({}, [dict(sample.metainfo, pred_instances=found)])
    result = metric.evaluate(size=len(dataset))
    assert result['coco/bbox_mAP'] == result['coco/segm_mAP'] == 1.0
