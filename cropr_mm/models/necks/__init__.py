from .pyramid import SimpleFeaturePyramid
from .reinsertion import TokenPooling, TokenReinsertion
from .stand_in import StandInPyramid

__all__ = ['SimpleFeaturePyramid', 'StandInPyramid', 'TokenPooling', 'TokenReinsertion']
