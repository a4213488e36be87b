"""IoU of each class, by hand."""

import pytest
import torch


def test_each_class_that_is_there_has_its_iou():
    pytest.importorskip('mmseg')
    from cropr_mm.analysis.class_iou import ClassIoUMetric

    metric = ClassIoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=('road', 'sign', 'nowhere'))
    label, prediction = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    label[0, :2], prediction[0, 1:3] = 1, 1  # one pixel of three in common
    label[1, 3], prediction[1, 3] = 255, 1  # not labelled: counts for nothing
    sample = dict(pred_sem_seg=dict(data=prediction[None]), gt_sem_seg=dict(data=label[None]))
    metric.process({}, [sample, sample])
    metrics = metric.evaluate(2)
    assert metrics['IoU.sign'] == pytest.approx(100 / 3) and metrics['IoU.road'] == pytest.approx(100 * 4 / 6)
    assert 'IoU.nowhere' not in metrics
    assert metrics['mIoU'] == pytest.approx((100 / 3 + 400 / 6) / 2, abs=0.01)
