# EVA-02-L with a linear head: the dense model that the paper starts from (arXiv 2412.00965).
_base_ = [
    '../_base_/linear_fcn.py',
    '../_base_/backbones/eva02-l.py',
    '../_base_/schedules/ade20k_64e.py',
]
custom_imports = dict(imports=['cropr_mm'])
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, size=_base_.size, test_cfg=dict(size=_base_.size)),
    backbone=dict(
        _delete_=True,
        **_base_.backbone,
        img_size=512,
        drop_path_rate=[0.2 * block / 23 for block in range(23)] + [0.0],  # none in the last block, as with fusion
    ),
    decode_head=dict(in_channels=1024, channels=1024, num_classes=150),
)
