# Pruning by the variance of a token's channels, at the same budget and with the same curriculum.
_base_ = './mask-rcnn_random-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(type='VariancePruner'))))
