# Pruning by the [CLS] token's attention in the block before, at the same budget and with the same curriculum.
_base_ = './mask-rcnn_random-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='AttentionPruner'))))
