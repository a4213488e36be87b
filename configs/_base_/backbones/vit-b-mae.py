# ViT-B, pre-trained as a masked autoencoder (facebookresearch/mae).
checkpoint_hint = (
    'Download mae_pretrain_vit_base.pth of MAE (https://github.com/facebookresearch/mae, FINETUNE.md) to the folder '
    'checkpoints'
)
backbone = dict(
    type='CroprViT',
    arch='vit-base',
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/mae_pretrain_vit_base.pth'),
)
