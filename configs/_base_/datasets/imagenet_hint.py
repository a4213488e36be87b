# What a run says when ImageNet is not there.
data_hint = (
    'Download ILSVRC2012 (https://image-net.org/download-images) and unpack it in data/imagenet '
    '(configs/imagenet/README.md)'
)
