# Mask R-CNN on ViT-B (MAE) as in ViTDet (arXiv 2203.16527), without relative positions in the attention.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/backbones/vit-b-mae.py',
    '../_base_/datasets/coco_lsj-1024.py',
    '../_base_/schedules/coco_vitdet.py',
]
custom_imports = dict(imports=['cropr_mm'])
norm = dict(type='ChannelNorm', eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),  # every image to the full size
    backbone=dict(
        _delete_=True,
        **dict(_base_.backbone, arch=dict(family='vit', class_token=False)),
        img_size=1024,
        final_norm=False,
        drop_path_rate=0.1,
        window_size=14,
        global_blocks=(2, 5, 8, 11),
    ),
    neck=[
        dict(type='TokenReinsertion'),
        dict(type='SimpleFeaturePyramid', in_channels=768, out_channels=256, strides=(4, 8, 16, 32, 64)),
    ],
    rpn_head=dict(num_convs=2),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm), mask_head=dict(norm_cfg=norm)),
)
