# EVA-02-L, pre-trained by masked image modelling on Merged-38M (baaivision/EVA).
checkpoint_hint = (
    'Download eva02_L_pt_m38m_p14to16.pt of EVA-02 (https://github.com/baaivision/EVA, EVA-02/det/README.md) to the '
    'folder checkpoints'
)
backbone = dict(
    type='CroprViT',
    arch='eva02-large',
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/eva02_L_pt_m38m_p14to16.pt'),
)
