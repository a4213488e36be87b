# Weights, gradients and optimizer sharded over all processes. Add this file to the _base_ of any config.
# The settings of model_wrapper are those of torch.distributed.fsdp.FullyShardedDataParallel.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='CroprFSDPStrategy',
    model_wrapper=dict(
        auto_wrap_policy=dict(type='wrap_vit_blocks'),  # gathers one block of the ViT at a time
        sharding_strategy='FULL_SHARD',  # 'SHARD_GRAD_OP': weights stay whole between forward and backward
    ),
)
