# Cropr after the paper's description for detection: five stages, each after a global block; one query learns which
# classes are in the image. The paper names the blocks, the 97 % pruned and the encoder's 1273 GFLOPs (linear layers
# alone, a multiplication and an addition as one), not the tokens of each stage; these meet all three.
_base_ = './cascade-mask-rcnn_dense-eva02-l_32xb2-40k_coco-1536x1536.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='MultiLabelAuxHead', num_classes=80))
keep = {5: 0.569, 8: 0.324, 11: 0.184, 14: 0.105, 20: 0.03}
model = dict(backbone=dict(pruning=dict(pruner=pruner, keep=keep)))
custom_hooks = [dict(type='CroprHook', ramp=0), *_base_.custom_hooks]  # the paper ramps up in segmentation alone
