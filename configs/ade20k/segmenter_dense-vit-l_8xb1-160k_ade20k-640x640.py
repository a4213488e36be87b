# Segmenter with mask transformer on ViT-L (AugReg, ImageNet-21k): mmsegmentation's recipe.
_base_ = [
    'mmseg::segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-512x512.py',
    '../_base_/datasets/ade20k_hint.py',
]
custom_imports = dict(imports=['cropr_mm'])
checkpoint_hint = (
    'Download https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segmenter/'
    'vit_large_p16_384_20220308-d4efb41d.pth to the folder checkpoints'
)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='CroprViT',
        arch='vit-large',
        img_size=640,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_large_p16_384_20220308-d4efb41d.pth'),
    ),
    neck=dict(type='TokenReinsertion'),
)
