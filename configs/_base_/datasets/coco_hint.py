# What a run says when COCO is not there.
data_hint = (
    'Download train2017.zip, val2017.zip and annotations_trainval2017.zip (https://cocodataset.org/#download) and '
    'unpack them in data/coco (configs/coco/README.md)'
)
