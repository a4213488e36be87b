# The backbone of the sample configs: a small ViT on 12 × 12 patches, pre-trained on crops of one object.
checkpoint = __import__('cropr_mm').__path__[0] + '/sample_data/sample_vit.safetensors'
custom_imports = dict(imports=['cropr_mm'])
backbone = dict(
    type='CroprViT',
    arch=dict(family='vit', embed_dim=128, depth=8, num_heads=4, mlp_ratio=4.0),
    img_size=96,
    patch_size=8,
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
)
