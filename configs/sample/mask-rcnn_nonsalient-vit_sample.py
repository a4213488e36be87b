# Cropr upside down: keeps the tokens with the lowest scores. A sanity check that must do worse than random.
_base_ = './mask-rcnn_cropr-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(reverse=True))))
