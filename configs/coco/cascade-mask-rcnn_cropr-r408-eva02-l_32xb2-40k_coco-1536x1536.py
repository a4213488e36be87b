# Cropr on it, R 408: 97 % of the tokens pruned; it keeps what a linear classifier cannot name yet (recommended).
_base_ = './cascade-mask-rcnn_dense-eva02-l_32xb2-40k_coco-1536x1536.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=80), rate=408)))
custom_hooks = [dict(type='CroprHook', ramp=0.5), *_base_.custom_hooks]
