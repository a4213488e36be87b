# Test-time augmentation on the sample data in mmdetection: two sizes, and mirrored (tools/test.py --tta).
# Boxes alone, as mmdetection merges no masks: with model.roi_head.mask_head=None and test_evaluator.metric=bbox.
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=20))
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (96, 144)],
            [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        *('img_id', 'img_path', 'ori_shape', 'img_shape'),
                        *('scale_factor', 'flip', 'flip_direction'),
                    ),
                )
            ],
        ],
    ),
]
