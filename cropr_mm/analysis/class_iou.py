"""mmsegmentation's IoU of each class as a figure of its own, in the log beside the mean."""

from __future__ import annotations

from typing import Any

from mmengine.registry import METRICS
from mmseg.evaluation.metrics import IoUMetric


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmsegmentation's ``IoUMetric``, which prints IoUs of classes, and here also returns them.

    ``val_evaluator = dict(type='ClassIoUMetric', iou_metrics=['mIoU'])`` with
    ``custom_imports = dict(imports=['cropr_mm', 'cropr_mm.analysis.class_iou'])``.
    """

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """What ``IoUMetric`` returns, and ``IoU.NAME`` in percent; a class that is nowhere has none."""
        metrics = super().compute_metrics(results)
        if not self.format_only:
            intersect, union = (sum(areas) for areas in list(zip(*results))[:2])
            for name, inside, both in zip(self.dataset_meta['classes'], intersect.tolist(), union.tolist()):
                if both:
                    metrics[f'IoU.{name}'] = 100 * inside / both
        return metrics
