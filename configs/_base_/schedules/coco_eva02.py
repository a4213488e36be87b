# EVA-02's training on COCO after Objects365: 40,000 iterations of batch 64, constant after warm-up, moving average.
_base_ = './coco_vitdet.py'
train_cfg = dict(max_iters=40000)
optim_wrapper = dict(optimizer=dict(lr=4e-5), paramwise_cfg=dict(layer_decay_rate=0.8))
param_scheduler = [dict(_base_.warm_up, end=400)]
custom_hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=1e-4)]  # decay 0.9999
