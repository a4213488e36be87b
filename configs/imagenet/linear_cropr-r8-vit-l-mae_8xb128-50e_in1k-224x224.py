# Cropr as published, R 8: 197 → 192, 184 … 24 tokens; one query learns the class of the image.
_base_ = './linear_dense-vit-l-mae_8xb128-50e_in1k-224x224.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='ClsAuxHead', num_classes=1000, label_smoothing=0.1))
model = dict(backbone=dict(pruning=dict(pruner=pruner, rate=8)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(queries=dict(decay_mult=1.0))))  # published
custom_hooks = [dict(type='CroprHook', ramp=0)]
