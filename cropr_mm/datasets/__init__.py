"""The sample data set: generated scenes on which it matters which tokens a pruned ViT keeps."""
from .classes import CLASSES, METAINFO, PALETTE, STUFF, THING_METAINFO, THINGS
from .sample import write_sample_data
from .scenes import Scene, draw_crop, draw_scene

__all__ = ['CLASSES', 'METAINFO', 'PALETTE', 'STUFF', 'THINGS', 'THING_METAINFO', 'Scene', 'draw_crop', 'draw_scene',
           'write_sample_data']
