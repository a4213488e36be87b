# ViTDet's training on COCO (arXiv 2203.16527, appendix A.2): AdamW, layer-wise decay, batch 64, constant after warm-up
# until two steps, 184,375 iterations (100 epochs) for ViT-B.
_base_ = 'mmdet::_base_/default_runtime.py'
max_iters = 184375
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1),
    constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7),
)
warm_up = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250)
param_scheduler = [warm_up, dict(type='MultiStepLR', milestones=[163889, 177546], gamma=0.1, by_epoch=False)]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=2)
)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(enable=False, base_batch_size=64)
