# The sample data as mmsegmentation reads it: folders and void as in ADE20K, images small enough to go in whole.
_base_ = 'mmseg::_base_/datasets/ade20k.py'
# (mmengine takes an import statement in a config for its other config style; a call of __import__ it does not.)
sample = __import__('cropr_mm.sample_data', fromlist=['CLASSES'])
default_scope = 'mmseg'
data_hint = 'Make it with: python tools/make_sample_data.py data/sample'
object_classes = [sample.CLASSES.index(name) for name in sample.THINGS]
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
train_pipeline = [*load, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
test_pipeline = [*load, dict(type='PackSegInputs')]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (1.0, 1.5)],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations', reduce_zero_label=True)],
            [dict(type='PackSegInputs')],
        ],
    ),
]
dataset = dict(
    type='BaseSegDataset',
    data_root='data/sample',
    metainfo=dict(classes=sample.CLASSES, palette=list(sample.PALETTE)),
    reduce_zero_label=True,
)
train_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
