# Segmenter with mask transformer on ViT-B (AugReg, ImageNet-21k): mmsegmentation's recipe.
_base_ = [
    'mmseg::segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py',
    '../_base_/datasets/ade20k_hint.py',
]
custom_imports = dict(imports=['cropr_mm'])
checkpoint_hint = (
    'Download https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segmenter/'
    'vit_base_p16_384_20220308-96dfe169.pth to the folder checkpoints'
)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='CroprViT',
        arch='vit-base',
        img_size=512,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_base_p16_384_20220308-96dfe169.pth'),
    ),
    neck=dict(type='TokenReinsertion'),
)
