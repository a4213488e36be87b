# The published pruner upside down: it keeps the tokens that score lowest, and must do worse than random.
_base_ = './fcn_cropr-patch-r40-eva02-l_8xb1-64e_ade20k-512x512.py'
model = dict(backbone=dict(pruning=dict(pruner=dict(reverse=True))))
