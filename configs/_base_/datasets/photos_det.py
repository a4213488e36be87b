# Photographs of CIFAR-10 pasted on pieces of CamVid, as mmdetection reads them: the photographs, with boxes and masks.
_base_ = '../sample_det.py'
scenes = __import__('cropr_mm.sample_data.photo_scenes', fromlist=['PHOTO_THINGS'])
data_hint = 'Make it with: python tools/make_photo_scenes.py data/photos (configs/photos/README.md says from what)'
data_root = 'data/photos/'
palette = list(scenes.PHOTO_PALETTE[len(scenes.PHOTO_STUFF) :])
dataset = dict(data_root=data_root, metainfo=dict(_delete_=True, classes=scenes.PHOTO_THINGS, palette=palette))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_validation.json')
test_evaluator = val_evaluator
