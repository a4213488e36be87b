# The dense ViT with a linear head: what the pruned ones are measured against.
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    '../_base_/sample_vit.py',
    '../_base_/sample_seg.py',
    '../_base_/sample_runtime.py',
]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[58.0] * 3, size=(96, 96)),
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.backbone),
    neck=dict(type='TokenReinsertion'),
    decode_head=dict(
        in_channels=128,
        in_index=0,
        channels=128,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        norm_cfg=None,
        num_classes=9,
    ),
    auxiliary_head=None,
)
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
