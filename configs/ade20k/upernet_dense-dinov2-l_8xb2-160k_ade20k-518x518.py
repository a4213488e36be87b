# UPerNet on DINOv2 ViT-L/14: settings as for ViT-L (MAE), crops of 37 × 37 patches.
_base_ = './upernet_dense-dinov2-b_8xb2-160k_ade20k-518x518.py'
checkpoint_hint = (
    'Download dinov2_vitl14_pretrain.pth of DINOv2 (https://github.com/facebookresearch/dinov2, README.md) to the '
    'folder checkpoints'
)
model = dict(
    backbone=dict(
        arch='dinov2-large',
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='checkpoints/dinov2_vitl14_pretrain.pth'),
    ),
    neck=[dict(type='TokenReinsertion'), dict(_base_.model.neck[1], embed_dim=1024)],
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
