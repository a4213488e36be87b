# Mask R-CNN on the dense ViT, its heads shrunk to the size of the data.
_base_ = [
    '../_base_/small_mask-rcnn.py',
    '../_base_/photo_vit.py',
    '../_base_/datasets/photos_det.py',
    '../_base_/sample_runtime.py',
]
model = dict(
    backbone=dict(_delete_=True, **_base_.backbone),
    neck=[
        dict(type='TokenReinsertion'),
        dict(type='SimpleFeaturePyramid', in_channels=128, out_channels=64, in_stride=4, strides=(4, 8, 16, 32)),
    ],
    roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)),
)
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(neck=dict(lr_mult=5), head=dict(lr_mult=5))))
