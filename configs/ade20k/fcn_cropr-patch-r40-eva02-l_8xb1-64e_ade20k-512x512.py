# Cropr as published, R 40: 1025 → 984, 944 … 144 tokens; a query for each patch learns the patch's class.
_base_ = './fcn_dense-eva02-l_8xb1-64e_ade20k-512x512.py'
head = dict(type='PatchSegAuxHead', num_classes=150, pixel='corner')
model = dict(backbone=dict(pruning=dict(pruner=dict(type='CroprPruner', aux_head=head), rate=40)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(queries=dict(decay_mult=1.0))))  # published
custom_hooks = [dict(type='CroprHook', ramp=31 / 64, by_epoch=True)]  # the full rate from epoch 31 of 64 on
