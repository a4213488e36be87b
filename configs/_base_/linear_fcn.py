# A linear head on the tokens of a ViT; a config adds the backbone, the classes, and the channels of head and tokens.
_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'
model = dict(
    pretrained=None,
    neck=dict(type='TokenReinsertion'),
    decode_head=dict(in_index=0, num_convs=0, concat_input=False, dropout_ratio=0.0, norm_cfg=None),
    auxiliary_head=None,
)
