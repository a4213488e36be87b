# Cropr whose one query learns which classes are in the image, as published for detection.
_base_ = './mask-rcnn_cropr-vit_sample.py'
pruner = dict(type='CroprPruner', aux_head=dict(type='MultiLabelAuxHead', num_classes=6))
model = dict(backbone=dict(pruning=dict(pruner=dict(_delete_=True, **pruner))))
