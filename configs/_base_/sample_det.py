# The sample data as mmdetection reads it: the countable objects, with boxes and masks.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'
# (mmengine takes an import statement in a config for its other config style; a call of __import__ it does not.)
sample = __import__('cropr_mm.sample_data', fromlist=['CLASSES'])
default_scope = 'mmdet'
data_hint = 'Make it with: python tools/make_sample_data.py data/sample'
data_root = 'data/sample/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0),  # for the scale factor that mmdetection asks for
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(
    data_root=data_root, metainfo=dict(classes=sample.THINGS, palette=list(sample.THING_METAINFO['palette']))
)
training = dict(ann_file='annotations/instances_training.json', data_prefix=dict(img='images/training/'))
validation = dict(ann_file='annotations/instances_validation.json', data_prefix=dict(img='images/validation/'))
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(**dataset, **training, pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(**dataset, **validation, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + validation['ann_file'])
test_evaluator = val_evaluator
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
