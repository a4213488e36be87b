# Photographs of CIFAR-10 pasted on pieces of CamVid, as mmsegmentation reads them; laid out as the sample data.
_base_ = '../sample_seg.py'
scenes = __import__('cropr_mm.sample_data.photo_scenes', fromlist=['PHOTO_CLASSES'])
data_hint = 'Make it with: python tools/make_photo_scenes.py data/photos (configs/photos/README.md says from what)'
object_classes = [scenes.PHOTO_CLASSES.index(name) for name in scenes.PHOTO_THINGS]
dataset = dict(
    data_root='data/photos',
    metainfo=dict(_delete_=True, classes=scenes.PHOTO_CLASSES, palette=list(scenes.PHOTO_PALETTE)),
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
