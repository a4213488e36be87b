# Cropr on it: 86 % of the tokens pruned; it keeps what a linear classifier cannot name yet.
_base_ = './mask-rcnn_dense-vit-b-mae_32xb2-184k_coco-1024x1024.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=80), rate=352)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
