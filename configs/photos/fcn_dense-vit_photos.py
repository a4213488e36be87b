# The dense ViT with a linear head: what the pruned ones are measured against.
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    '../_base_/photo_vit.py',
    '../_base_/datasets/photos_seg.py',
    '../_base_/sample_runtime.py',
]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[58.0] * 3, size=(64, 64)),
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.backbone),
    neck=dict(type='TokenReinsertion'),
    decode_head=dict(
        in_channels=128,
        in_index=0,
        channels=128,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        norm_cfg=None,
        num_classes=14,
    ),
    auxiliary_head=None,
)
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
