# One-shot: after the third block (block 2) a fifth of the tokens is left, and the others do not return.
_base_ = './linear_cropr-r40-eva02-l_32xb16-20e_in1k-448x448.py'
model = dict(backbone=dict(pruning=dict(rate=None, keep={2: 0.2}, fusion=None)))
