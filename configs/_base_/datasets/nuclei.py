# Nuclei of the Data Science Bowl 2018. Images differ in size; they are used at their own resolution.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'
default_scope = 'mmdet'
data_hint = (
    'Download stage1_train.zip from https://bbbc.broadinstitute.org/BBBC038 and run: python '
    'tools/dataset_converters/nuclei.py stage1_train.zip data/nuclei (configs/nuclei/README.md)'
)
data_root = 'data/nuclei/'
size = (192, 192)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    # Pieces of another size brought to this one: cropped first, as resizing the masks of a whole image takes long.
    dict(
        type='RandomChoice',
        transforms=[
            [
                dict(type='RandomCrop', crop_size=(side, side), recompute_bbox=True, allow_negative_crop=True),
                dict(type='Resize', scale=size),
            ]
            for side in (153, 171, 192, 213, 240)
        ],
    ),
    dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),  # what the crop left of a nucleus
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(data_root=data_root, metainfo=dict(classes=('nucleus',), palette=[(255, 200, 0)]))
training = dict(ann_file='instances_train.json', data_prefix=dict(img='images/train/'))
validation = dict(ann_file='instances_val.json', data_prefix=dict(img='images/val/'))
train_dataloader = dict(
    batch_size=4,
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(**dataset, **training, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(**dataset, **validation, pipeline=test_pipeline))
test_dataloader = val_dataloader
# Some images hold more than the 100 nuclei that COCO's AP counts: `nucleus_precision` (classwise) is the mask AP of all
# detections. AP50, AP75 and AP by area count all of them in any case.
val_evaluator = dict(ann_file=data_root + validation['ann_file'], classwise=True, proposal_nums=(100, 300, 1000))
test_evaluator = val_evaluator
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
