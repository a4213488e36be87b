# Cropr on it, R 40: 86 % of the tokens pruned; it keeps what a linear classifier cannot name yet.
_base_ = './mask2former_dense-eva02-l_8xb2-160k_ade20k-512x512.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=150), rate=40)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
