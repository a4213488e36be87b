# UPerNet on ViT-B (MAE): mmsegmentation's recipe for it, on a plain ViT.
_base_ = [
    'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
    '../_base_/backbones/vit-b-mae.py',
    '../_base_/datasets/ade20k_hint.py',
]
custom_imports = dict(imports=['cropr_mm'])
model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.backbone, img_size=512, out_indices=(3, 5, 7, 11), drop_path_rate=0.1),
    neck=[dict(type='TokenReinsertion'), _base_.model.neck],
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.65),
)
