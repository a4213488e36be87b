# COCO with large-scale jitter, 1536².
_base_ = './coco_lsj-1024.py'
size = (1536, 1536)
pipelines = [
    [dict(step, **{key: size for key in ('scale', 'crop_size') if key in step}) for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
]
train_dataloader = dict(dataset=dict(pipeline=pipelines[0]))
val_dataloader = dict(dataset=dict(pipeline=pipelines[1]))
test_dataloader = val_dataloader
