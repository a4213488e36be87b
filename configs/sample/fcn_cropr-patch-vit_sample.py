# Cropr as published for segmentation: a query for each patch learns the patch's class.
_base_ = './fcn_cropr-vit_sample.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='PatchSegAuxHead', num_classes=9))
model = dict(backbone=dict(pruning=dict(pruner=dict(_delete_=True, **pruner))))
