# Cropr, R 40: 1025 → 984, 944 … 144 tokens; it keeps what a linear classifier cannot name yet (recommended).
_base_ = './fcn_dense-eva02-l_8xb1-64e_ade20k-512x512.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=150), rate=40)))
custom_hooks = [dict(type='CroprHook', ramp=0.5, by_epoch=True)]
