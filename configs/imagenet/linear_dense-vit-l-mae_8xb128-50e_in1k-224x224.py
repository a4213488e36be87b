# MAE's ViT-L, fine-tuned as by mmpretrain: the dense model that the paper prunes (arXiv 2412.00965).
_base_ = [
    'mmpretrain::mae/benchmarks/vit-large-p16_8xb128-coslr-50e_in1k.py',
    '../_base_/datasets/imagenet_hint.py',
]
custom_imports = dict(imports=['cropr_mm'])
checkpoint_hint = (
    'Download mae_pretrain_vit_large.pth of MAE (https://github.com/facebookresearch/mae, FINETUNE.md) to the folder '
    'checkpoints'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='CroprViT',
        arch='vit-large',
        img_size=224,
        drop_path_rate=0.2,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/mae_pretrain_vit_large.pth'),
    ),
    neck=dict(_delete_=True, type='TokenPooling', mode='all', norm=True, embed_dim=1024),
)
optim_wrapper = dict(
    constructor='CroprLayerDecayOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.75)
)
