# The backbone of the configs for small sets of real photographs: the same ViT on 16 × 16 patches of 4 pixels.
_base_ = './sample_vit.py'
checkpoint = __import__('cropr_mm').__path__[0] + '/sample_data/photo_vit.safetensors'
backbone = dict(img_size=64, patch_size=4, init_cfg=dict(checkpoint=checkpoint))
