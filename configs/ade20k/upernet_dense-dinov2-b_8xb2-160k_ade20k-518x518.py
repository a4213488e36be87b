# UPerNet on DINOv2 ViT-B/14: settings as for ViT-B (MAE), crops of 37 × 37 patches.
_base_ = './upernet_dense-vit-b-mae_8xb2-160k_ade20k-512x512.py'
checkpoint_hint = (
    'Download dinov2_vitb14_pretrain.pth of DINOv2 (https://github.com/facebookresearch/dinov2, README.md) to the '
    'folder checkpoints'
)
model = dict(
    data_preprocessor=dict(size=(518, 518)),
    backbone=dict(
        arch='dinov2-base',
        img_size=518,
        patch_size=14,
        init_cfg=dict(checkpoint='checkpoints/dinov2_vitb14_pretrain.pth'),
    ),
    test_cfg=dict(crop_size=(518, 518), stride=(345, 345)),
)
sizes = dict(scale=(2072, 518), crop_size=(518, 518))
pipelines = [
    [dict(step, **{key: size for key, size in sizes.items() if key in step}) for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
]
train_dataloader = dict(dataset=dict(pipeline=pipelines[0]))
val_dataloader = dict(dataset=dict(pipeline=pipelines[1]))
test_dataloader = val_dataloader
