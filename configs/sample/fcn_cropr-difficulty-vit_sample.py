# Cropr, 24 of 144 tokens left in front of the last block; it keeps what a linear classifier cannot name yet.
_base_ = './fcn_cropr-vit_sample.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(_delete_=True, type='DifficultyPruner', num_classes=9))))
