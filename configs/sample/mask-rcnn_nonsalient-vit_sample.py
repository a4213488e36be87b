# Cropr upside down: the tokens that it thinks least of go on. A sanity check, which must do worse than chance.
_base_ = './mask-rcnn_cropr-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(reverse=True))))
