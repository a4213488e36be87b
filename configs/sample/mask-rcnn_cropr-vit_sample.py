# Cropr, 24 of 144 tokens kept before the last block; it keeps what a linear classifier cannot name yet.
_base_ = './mask-rcnn_dense-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=6), rate=20)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
