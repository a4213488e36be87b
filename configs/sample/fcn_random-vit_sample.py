# Random pruning at the same budget and with the same curriculum.
_base_ = './fcn_cropr-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(_delete_=True, type='RandomPruner'))))
