"""Architectures by name and by dict."""

import pytest
from mmengine import ConfigDict

from cropr_mm.models.archs import ARCHS, resolve_arch


@pytest.mark.parametrize(
    'name, shape',
    [  # from the papers: arXiv 2010.11929 table 1 (and DeiT's tiny and small), arXiv 2303.11331 table 2
        ('vit-tiny', (192, 12, 3)),
        ('vit-small', (384, 12, 6)),
        ('vit-base', (768, 12, 12)),
        ('vit-large', (1024, 24, 16)),
        ('vit-huge', (1280, 32, 16)),
        ('eva02-tiny', (192, 12, 3)),
        ('eva02-small', (384, 12, 6)),
        ('eva02-base', (768, 12, 12)),
        ('eva02-large', (1024, 24, 16)),
    ],
)
def test_named_shapes_are_the_published_ones(name, shape):
    arch = resolve_arch(name)
    assert (arch.embed_dim, arch.depth, arch.num_heads) == shape


def test_every_name_is_among_the_published():
    assert len(ARCHS) == 9


def test_a_dict_takes_the_rest_from_its_family():
    arch = resolve_arch(ConfigDict(family='eva02', embed_dim=64, depth=2, num_heads=2))
    assert arch.rotary and arch.sub_norm and not arch.qkv_fused and arch.embed_dim == 64


def test_the_family_is_vit_by_default():
    assert not resolve_arch(dict(embed_dim=64, depth=2, num_heads=2)).rotary


@pytest.mark.parametrize(
    'arch, words',
    [
        ('vit-bse', r"arch='vit-bse' is unknown \(did you mean 'vit-base'\?\); valid are vit-tiny"),
        ('resnet', r"arch='resnet' is unknown; valid are"),
        (dict(family='swin'), r"arch.family='swin' is unknown; valid are vit, eva02"),
        (dict(width=3), r'arch has unknown keys width; valid are family'),
        (dict(depth=0), r'arch.depth=0; a positive integer'),
        (dict(embed_dim=64.0), r'arch.embed_dim=64.0; a positive integer'),
        (dict(embed_dim=64, num_heads=3), r'arch.embed_dim=64 with 3 heads; a multiple of 3 is'),
        (dict(family='eva02', embed_dim=36, num_heads=6), r'arch.embed_dim=36 with 6 heads; a multiple of 24'),
        (dict(mlp='relu'), r"arch.mlp='relu'; valid are 'gelu'"),
    ],
)
def test_errors_name_key_value_and_what_is_valid(arch, words):
    with pytest.raises(ValueError, match=words):
        resolve_arch(arch)


def test_a_wrong_type_is_named():
    with pytest.raises(TypeError, match='arch is a int; a name or a dict'):
        resolve_arch(5)
