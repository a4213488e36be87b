# Cropr as published for detection, R 408: 97 % of the tokens pruned; one query learns which classes are in the image.
_base_ = './cascade-mask-rcnn_dense-eva02-l_32xb2-40k_coco-1536x1536.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='MultiLabelAuxHead', num_classes=80))
model = dict(backbone=dict(pruning=dict(pruner=pruner, rate=408)))
custom_hooks = [dict(type='CroprHook', ramp=0), *_base_.custom_hooks]  # the paper ramps up in segmentation alone
