# Cropr on it: 86 % of the tokens pruned; it keeps what a linear classifier cannot name yet.
_base_ = './segmenter_dense-vit-b_8xb1-160k_ade20k-512x512.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=150), rate=88)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
