# Cropr, 24 of 144 tokens left in front of the last block; the attention learns which tokens a linear layer cannot name.
_base_ = './fcn_cropr-vit_sample.py'
model = dict(
    backbone=dict(
        pruning=dict(
            pruner=dict(type='DifficultyPruner', aux_head=dict(_delete_=True, type='TokenClassAuxHead', num_classes=9))
        )
    )
)
