# The backbone of the configs for small sets of real photographs: a small ViT on 16 × 16 patches.
checkpoint = __import__('cropr_mm').__path__[0] + '/sample_data/photo_vit.safetensors'
custom_imports = dict(imports=['cropr_mm'])
backbone = dict(
    type='CroprViT',
    arch=dict(family='vit', embed_dim=128, depth=8, num_heads=4, mlp_ratio=4.0),
    img_size=64,
    patch_size=4,
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
)
