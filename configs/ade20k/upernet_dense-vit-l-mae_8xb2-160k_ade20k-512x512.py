# UPerNet on ViT-L (MAE): levels as mmsegmentation's BEiT-L, drop path and layer decay as MAE's own ViT-L.
_base_ = './upernet_dense-vit-b-mae_8xb2-160k_ade20k-512x512.py'
checkpoint_hint = (
    'Download mae_pretrain_vit_large.pth of MAE (https://github.com/facebookresearch/mae, FINETUNE.md) to the folder '
    'checkpoints'
)
model = dict(
    backbone=dict(
        arch='vit-large',
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='checkpoints/mae_pretrain_vit_large.pth'),
    ),
    neck=[dict(type='TokenReinsertion'), dict(_base_.model.neck[1], embed_dim=1024)],
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
