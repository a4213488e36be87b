# EVA-02-L after ImageNet-21k, fine-tuned by EVA-02's recipe (arXiv 2303.11331): the dense model that the paper prunes.
_base_ = '../_base_/imagenet_eva02.py'
custom_imports = dict(imports=['cropr_mm'])
checkpoint_hint = (
    'Download eva02_L_pt_m38m_medft_in21k_p14.pt of EVA-02 (https://github.com/baaivision/EVA, '
    'EVA-02/asuka/README.md) to the folder checkpoints'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='CroprViT',
        arch='eva02-large',
        img_size=448,
        patch_size=14,
        drop_path_rate=0.15,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/eva02_L_pt_m38m_medft_in21k_p14.pt'),
    ),
    neck=dict(_delete_=True, type='TokenPooling', mode='all', norm=True, embed_dim=1024),
)
