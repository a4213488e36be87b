# For analysis only: keeps the tokens that objects cover, read from the labels. The bound for any learned pruner.
_base_ = './fcn_random-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='OraclePruner'))))
custom_hooks = [dict(type='CroprHook', ramp=0.5), dict(type='OracleHook', object_classes=_base_.object_classes)]
