# The dense ViT with a linear head: what the pruned ones are measured against.
_base_ = [
    '../_base_/small_fcn.py',
    '../_base_/photo_vit.py',
    '../_base_/datasets/photos_seg.py',
    '../_base_/sample_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(_delete_=True, **_base_.backbone),
    decode_head=dict(num_classes=14),
)
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
