# The dense ViT with a linear head: what the pruned ones are measured against.
_base_ = [
    '../_base_/small_fcn.py',
    '../_base_/photo_vit.py',
    '../_base_/datasets/camvid.py',
    '../_base_/sample_runtime.py',
]
patch_size = 6  # 24 × 24 tokens of a crop; the weights' patch embedding is resized to it on loading
# Share of each class in the labelled pixels to the power of -0.5, scaled to a mean over these pixels of 1. The loss is
# left unreduced, so mmengine averages it: mmsegmentation's own mean with class weights fails on unlabelled pixels.
class_weight = [0.88, 0.75, 3.67, 0.64, 1.69, 1.16, 3.35, 3.35, 1.49, 4.39, 6.70]
loss = dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=class_weight, reduction='none')
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_delete_=True, **{**_base_.backbone, 'img_size': 144, 'patch_size': patch_size}),
    decode_head=dict(num_classes=11, loss_decode=loss),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(108, 114)),  # 3 × 4 crops of 480 × 360
)
max_iters = 800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(custom_keys={key: dict(lr_mult=4) for key in ('pruners', 'neck', 'head')}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
default_hooks = dict(checkpoint=dict(interval=max_iters), visualization=dict(type='SegVisualizationHook'))
