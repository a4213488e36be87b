# EVA-02-L on ImageNet-1k after ImageNet-21k by EVA-02's recipe, on mmpretrain's config.
_base_ = ['mmpretrain::eva02/eva02-large-p14_in1k.py', './datasets/imagenet_hint.py']
model = dict(head=dict(loss=dict(label_smooth_val=0.2)), init_cfg=None, train_cfg=dict(augments=None))
augment = dict(
    type='RandAugment',
    policies='timm_increasing',
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(pad_val=[104, 116, 122], interpolation='bicubic'),
)
pipeline = [*_base_.train_pipeline[:-1], augment, _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.05),
    constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.85),
)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=2, end=20, T_max=18, eta_min=0.0, convert_to_iter_based=True),
]
custom_hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=1e-4)]  # decay 0.9999
auto_scale_lr = dict(base_batch_size=512)  # 32 GPUs × 16 images
