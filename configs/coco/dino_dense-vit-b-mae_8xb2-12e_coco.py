# DINO on ViT-B (MAE): mmdetection's recipe and data, with layer-wise decay.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/backbones/vit-b-mae.py',
    '../_base_/datasets/coco_hint.py',
]
custom_imports = dict(imports=['cropr_mm'])
model = dict(
    backbone=dict(
        _delete_=True,
        **dict(_base_.backbone, arch=dict(family='vit', class_token=False)),
        img_size=(800, 1344),
        final_norm=False,
        drop_path_rate=0.1,
        window_size=14,
        global_blocks=(2, 5, 8, 11),
    ),
    neck=[
        dict(type='TokenReinsertion'),
        dict(type='SimpleFeaturePyramid', in_channels=768, out_channels=256, strides=(8, 16, 32, 64)),
    ],
)
optim_wrapper = dict(
    constructor='CroprLayerDecayOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.7)
)
