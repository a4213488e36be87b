# A finished dense model made prunable: only the pruners train, the rest stays as it was. Needs
# --cfg-options load_from=CHECKPOINT of mask-rcnn_dense-vit_sample.py.
_base_ = './mask-rcnn_cropr-vit_sample.py'
custom_hooks = [dict(type='CroprHook', ramp=0.5, retrofit=True)]
max_iters = 200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
