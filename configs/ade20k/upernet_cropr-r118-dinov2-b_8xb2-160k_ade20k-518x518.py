# Cropr on it: 86 % of the tokens pruned; it keeps what a linear classifier cannot name yet.
_base_ = './upernet_dense-dinov2-b_8xb2-160k_ade20k-518x518.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=150), rate=118)))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
