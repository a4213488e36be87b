# A linear head on a ViT that is 128 wide; a config adds the backbone, the classes and the size of images.
_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[58.0] * 3),
    pretrained=None,
    neck=dict(type='TokenReinsertion'),
    decode_head=dict(
        in_channels=128,
        in_index=0,
        channels=128,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        norm_cfg=None,
    ),
    auxiliary_head=None,
)
