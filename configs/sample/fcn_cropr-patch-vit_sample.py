# Cropr as published for segmentation: a query for each patch learns the patch's class.
_base_ = './fcn_cropr-vit_sample.py'
model = dict(
    backbone=dict(pruning=dict(pruner=dict(aux_head=dict(_delete_=True, type='PatchSegAuxHead', num_classes=9))))
)
