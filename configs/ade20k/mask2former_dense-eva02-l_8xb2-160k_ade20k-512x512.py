# Mask2Former on EVA-02-L: mmsegmentation's recipe for Mask2Former, with layer-wise decay.
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../_base_/backbones/eva02-l.py',
    '../_base_/datasets/ade20k_hint.py',
]
custom_imports = dict(imports=['cropr_mm', 'mmdet.models'])
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(_delete_=True, **_base_.backbone, img_size=512, drop_path_rate=0.2),
    neck=[
        dict(type='TokenReinsertion'),
        dict(type='SimpleFeaturePyramid', in_channels=1024, out_channels=256, strides=(4, 8, 16, 32)),
    ],
    decode_head=dict(in_channels=[256] * 4),
)
backbone_keys = {'backbone': dict(lr_mult=0.1), 'backbone.pruners': dict(lr_mult=1.0)}
optim_wrapper = dict(
    constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        custom_keys={**_base_.optim_wrapper.paramwise_cfg.custom_keys, **backbone_keys},
    ),
)
