"""The sample data set: generated scenes on which it matters which tokens a pruned ViT keeps."""

from pathlib import Path

from .classes import CLASSES, METAINFO, PALETTE, STUFF, THING_METAINFO, THINGS
from .crops import SampleCrops
from .sample import write_sample_data
from .scenes import Scene, draw_crop, draw_scene

__all__ = [
    'CLASSES',
    'METAINFO',
    'PALETTE',
    'PHOTO_CHECKPOINT',
    'SAMPLE_CHECKPOINT',
    'STUFF',
    'THINGS',
    'THING_METAINFO',
    'SampleCrops',
    'Scene',
    'draw_crop',
    'draw_scene',
    'write_sample_data',
]

SAMPLE_CHECKPOINT = str(Path(__file__).with_name('sample_vit.safetensors'))
"""Small dense ViT (1.6 M parameters, half precision) that the sample configs start from: tools/pretrain_sample.py."""

PHOTO_CHECKPOINT = str(Path(__file__).with_name('photo_vit.safetensors'))
"""The same, pre-trained on photographs, for the configs on real images: tools/pretrain_sample.py --photos."""
