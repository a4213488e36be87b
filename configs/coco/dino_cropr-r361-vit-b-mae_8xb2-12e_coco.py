# Cropr on it: 86 % of the tokens pruned; it keeps what a linear classifier cannot name yet.
_base_ = './dino_dense-vit-b-mae_8xb2-12e_coco.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=80), rate=361)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
