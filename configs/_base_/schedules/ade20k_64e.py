# The paper's recipe for ADE20K (arXiv 2412.00965): 64 epochs of 20,210 images at batch 8, no warm-up.
_base_ = ['mmseg::_base_/default_runtime.py', '../datasets/ade20k_long-edge-512.py']
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=64, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.05),
    constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
param_scheduler = dict(type='PolyLR', power=0.9, eta_min=0.0, end=64, convert_to_iter_based=True)
train_dataloader = dict(batch_size=1, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=4, max_keep_ckpts=2, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=True)
auto_scale_lr = dict(enable=False, base_batch_size=8)  # 8 GPUs × 1 image
