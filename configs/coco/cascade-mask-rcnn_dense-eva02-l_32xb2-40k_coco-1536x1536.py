# Cascade Mask R-CNN on EVA-02-L after Objects365 (arXiv 2303.11331): the dense reference.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_lsj-1536.py',
    '../_base_/schedules/coco_eva02.py',
]
custom_imports = dict(imports=['cropr_mm'])
checkpoint_hint = (
    'Download eva02_L_m38m_to_o365.pth of EVA-02 (https://github.com/baaivision/EVA, EVA-02/det/README.md) to the '
    'folder checkpoints'
)
norm = dict(type='ChannelNorm', eps=1e-6)
heads = [dict(head, type='Shared4Conv1FCBBoxHead', norm_cfg=norm) for head in _base_.model.roi_head.bbox_head]
checkpoint = dict(type='Pretrained', checkpoint='checkpoints/eva02_L_m38m_to_o365.pth', prefix='backbone.net.')
model = dict(
    data_preprocessor=dict(pad_size_divisor=1536),  # every image to the full size
    backbone=dict(
        _delete_=True,
        type='CroprViT',
        arch=dict(family='eva02', embed_dim=1024, depth=24, num_heads=16, class_token=False),
        img_size=1536,
        final_norm=False,
        drop_path_rate=0.3,
        window_size=16,
        global_blocks=(2, 5, 8, 11, 14, 17, 20, 23),
        with_cp=True,
        init_cfg=checkpoint,
    ),
    neck=[dict(type='TokenReinsertion'), dict(type='SimpleFeaturePyramid', in_channels=1024)],
    rpn_head=dict(num_convs=2),
    roi_head=dict(bbox_head=heads, mask_head=dict(norm_cfg=norm)),
    train_cfg=dict(rpn=dict(allowed_border=-1)),  # jitter makes images that no anchor fits into
)
