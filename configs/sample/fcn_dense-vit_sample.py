# The dense ViT with a linear head: what the pruned ones are measured against.
_base_ = [
    '../_base_/small_fcn.py',
    '../_base_/sample_vit.py',
    '../_base_/sample_seg.py',
    '../_base_/sample_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(_delete_=True, **_base_.backbone),
    decode_head=dict(num_classes=9),
)
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
