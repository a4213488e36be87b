# The linear head on a ViT that is 128 wide.
_base_ = './linear_fcn.py'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[58.0] * 3),
    decode_head=dict(in_channels=128, channels=128),
)
