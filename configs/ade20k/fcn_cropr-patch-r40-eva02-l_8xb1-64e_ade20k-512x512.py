# Cropr as published, R 40: 1025 → 984, 944 … 144 tokens; a query for each patch learns the patch's class.
_base_ = './fcn_dense-eva02-l_8xb1-64e_ade20k-512x512.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='PatchSegAuxHead', num_classes=150))
model = dict(backbone=dict(pruning=dict(pruner=pruner, rate=40)))
custom_hooks = [dict(type='CroprHook', ramp=0.5, by_epoch=True)]
