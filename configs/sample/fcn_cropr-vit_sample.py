# Cropr, 24 of 144 tokens left in front of the last block; one query learns which classes are in the image.
_base_ = './fcn_dense-vit_sample.py'
model = dict(
    backbone=dict(
        pruning=dict(pruner=dict(type='CroprPruner', aux_head=dict(type='MultiLabelAuxHead', num_classes=9)), rate=20)
    )
)
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
