# Mask R-CNN on the dense ViT for one class of many small objects, its heads shrunk to the size of the data.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/photo_vit.py',
    '../_base_/datasets/nuclei.py',
    '../_base_/sample_runtime.py',
]
patch_size = 8
strides = [4, 8, 16]
extractor = dict(out_channels=64, featmap_strides=strides, finest_scale=16)  # up to 32 pixels: the finest level
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[58.0] * 3),
    backbone=dict(_delete_=True, **dict(_base_.backbone, img_size=192, patch_size=patch_size)),
    neck=[
        dict(type='TokenReinsertion'),
        dict(type='SimpleFeaturePyramid', in_channels=128, out_channels=64, in_stride=patch_size, strides=strides),
    ],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[2.0, 2.8], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=extractor,
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=1),
        mask_roi_extractor=extractor,
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=500), rcnn=dict(sampler=dict(num=128, pos_fraction=0.5))
    ),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000), rcnn=dict(max_per_img=300)),
)
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(neck=dict(lr_mult=5), head=dict(lr_mult=5))))
