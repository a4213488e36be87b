# ADE20K as the authors of Cropr read it: the long edge at 512 (× 0.5 to 2 in training), padded to 512² by the data
# preprocessor, tested in one piece. mmsegmentation's own config has the short edge at 512, so a third more tokens.
_base_ = ['mmseg::_base_/datasets/ade20k.py', './ade20k_hint.py']
size = (512, 512)
pipelines = [
    [dict(step, scale=size) if 'scale' in step else step for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
]
train_dataloader = dict(dataset=dict(pipeline=pipelines[0]))
val_dataloader = dict(dataset=dict(pipeline=pipelines[1]))
test_dataloader = val_dataloader
