# Pruning by the attention of the [CLS] token at the same budget, R 40.
_base_ = './fcn_dense-eva02-l_8xb1-64e_ade20k-512x512.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='AttentionPruner'), rate=40)))
custom_hooks = [dict(type='CroprHook', ramp=0.5, by_epoch=True)]
