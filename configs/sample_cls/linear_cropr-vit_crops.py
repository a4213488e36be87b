# Image classification with mmpretrain's stock classifier and Mixup: which object a generated crop shows.
_base_ = ['../_base_/sample_vit.py', '../_base_/sample_runtime.py']
default_scope = 'mmpretrain'
custom_imports = dict(imports=['cropr_mm', 'cropr_mm.sample_data'])
data_preprocessor = dict(num_classes=6, mean=[127.5] * 3, std=[58.0] * 3, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        **_base_.backbone,
        pruning=dict(
            pruner=dict(type='CroprPruner', aux_head=dict(type='ClsAuxHead', num_classes=6, label_smoothing=0.1)),
            rate=20,
        ),
    ),
    neck=dict(type='TokenPooling', mode='cls'),
    head=dict(
        type='LinearClsHead', num_classes=6, in_channels=128, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    ),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)),
)
enlarge = dict(type='Resize', scale=(96, 96))  # to 12 × 12 patches
pipeline = [enlarge, dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
crops = dict(type='SampleCrops', seed=1)  # not the seed of the pre-training
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(**crops, count=8000, pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=16, num_workers=1, dataset=dict(**crops, first=8000, count=500, pipeline=[enlarge, pipeline[-1]])
)
val_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=False)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
custom_hooks = [dict(type='CroprHook', ramp=0.5)]
