# Cropr as published, R 40: 1025 → 984, 944 … 144 tokens; one query learns the class of the image.
_base_ = './linear_dense-eva02-l_32xb16-20e_in1k-448x448.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='ClsAuxHead', num_classes=1000, label_smoothing=0.2))
model = dict(backbone=dict(pruning=dict(pruner=pruner, rate=40)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(queries=dict(decay_mult=1.0))))  # published
custom_hooks = [dict(type='CroprHook', ramp=0), *_base_.custom_hooks]
