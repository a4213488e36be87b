# Cropr, 86 % of the tokens pruned before the last block; it keeps what a linear classifier cannot name yet.
_base_ = './mask-rcnn_dense-vit_nuclei.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=1), target_ratio=0.86)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
