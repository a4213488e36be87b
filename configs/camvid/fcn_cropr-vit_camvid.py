# Cropr; it keeps what a linear classifier cannot name yet (recommended).
_base_ = './fcn_dense-vit_camvid.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=11), target_ratio=0.86)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
