"""Architectures by name and by dict."""

import re

import pytest
import torch
from mmengine import ConfigDict
from parity import import_timm

from cropr_mm import CroprViT
from cropr_mm.checkpoint.fit import fit
from cropr_mm.checkpoint.layouts import convert
from cropr_mm.models.archs import ARCHS, resolve_arch

TIMM = {
    'vit-tiny': 'vit_tiny_patch16_224',
    'vit-small': 'vit_small_patch16_224',
    'vit-base': 'vit_base_patch16_224',
    'vit-large': 'vit_large_patch16_224',
    'vit-huge': 'vit_huge_patch14_224',
    'eva02-tiny': 'eva02_tiny_patch14_224',
    'eva02-small': 'eva02_small_patch14_224',
    'eva02-base': 'eva02_base_patch14_224',
    'eva02-large': 'eva02_large_patch14_224',
    **{f'dinov2-{s}': f'vit_{s}_patch14_dinov2' for s in ('small', 'base', 'large', 'giant')},
    **{f'dinov2-{s}-reg4': f'vit_{s}_patch14_reg4_dinov2' for s in ('small', 'base', 'large', 'giant')},
    **{f'dinov3-{s}': f'vit_{s}_patch16_dinov3_qkvb' for s in ('small', 'base', 'large')},
    'dinov3-small-plus': 'vit_small_plus_patch16_dinov3_qkvb',
    'dinov3-huge-plus': 'vit_huge_plus_patch16_dinov3_qkvb',
    'dinov3-7b': 'vit_7b_patch16_dinov3',
}


@pytest.mark.parametrize(
    'name, shape',
    [  # from the papers: arXiv 2010.11929 table 1 (and DeiT's tiny and small), arXiv 2303.11331 table 2; heads and
        # depths, which the parameters below do not tell, of the others from arXiv 2304.07193 and 2508.10104
        ('vit-tiny', (192, 12, 3)),
        ('vit-small', (384, 12, 6)),
        ('vit-base', (768, 12, 12)),
        ('vit-large', (1024, 24, 16)),
        ('vit-huge', (1280, 32, 16)),
        ('eva02-tiny', (192, 12, 3)),
        ('eva02-small', (384, 12, 6)),
        ('eva02-base', (768, 12, 12)),
        ('eva02-large', (1024, 24, 16)),
        ('dinov2-small', (384, 12, 6)),
        ('dinov2-base-reg4', (768, 12, 12)),
        ('dinov2-large', (1024, 24, 16)),
        ('dinov2-giant', (1536, 40, 24)),
        ('dinov3-small', (384, 12, 6)),
        ('dinov3-small-plus', (384, 12, 6)),
        ('dinov3-base', (768, 12, 12)),
        ('dinov3-large', (1024, 24, 16)),
        ('dinov3-huge-plus', (1280, 32, 20)),
        ('dinov3-7b', (4096, 40, 32)),
    ],
)
def test_named_shapes_are_the_published_ones(name, shape):
    arch = resolve_arch(name)
    assert (arch.embed_dim, arch.depth, arch.num_heads) == shape


@pytest.mark.parametrize('name, original', TIMM.items())
def test_named_architectures_have_the_parameters_of_timms(name, original):
    timm = import_timm()
    patch = int(re.search(r'patch(\d+)', original)[1])
    with torch.device('meta'):  # shapes alone: DINOv3's 7B fits
        ours = CroprViT(name, 8 * patch, patch).state_dict()
        theirs = timm.create_model(original, img_size=8 * patch, num_classes=0).state_dict()
    converted, _ = convert(theirs)
    fitted, _ = fit(converted, ours, (8, 8), None)
    expected = {key: tuple(value.shape) for key, value in fitted.items()}
    assert {k: tuple(v.shape) for k, v in ours.items() if not k.startswith('pruners.')} == expected


def test_every_name_has_an_original():
    assert set(ARCHS) == set(TIMM)


def test_registers_are_prefix_tokens_without_a_position():
    arch = resolve_arch('dinov2-base-reg4')
    assert (arch.num_prefix_tokens, arch.num_embedded_prefix_tokens) == (5, 0)
    arch = resolve_arch('dinov2-base')
    assert (arch.num_prefix_tokens, arch.num_embedded_prefix_tokens) == (1, 1)


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
        (dict(family='swin'), r"arch.family='swin' is unknown; valid are vit, eva02, dinov2, dinov3"),
        (dict(width=3), r'arch has unknown keys width; valid are family'),
        (dict(depth=0), r'arch.depth=0; a positive integer'),
        (dict(embed_dim=64.0), r'arch.embed_dim=64.0; a positive integer'),
        (dict(embed_dim=64, num_heads=3), r'arch.embed_dim=64 with arch.num_heads=3; a multiple of 3 is'),
        (dict(family='eva02', embed_dim=36, num_heads=6), r'arch.embed_dim=36 with arch.num_heads=6; a multiple of 24'),
        (dict(mlp='relu'), r"arch.mlp='relu'; valid are 'gelu'"),
        (dict(rotary=True), r"arch.rotary=True; valid are None, 'eva02', 'dinov3'"),
        (dict(num_registers=-1), r'arch.num_registers=-1; an integer of 0 or more'),
        (dict(layer_scale=True), r'arch.layer_scale=True; None or an initial value'),
    ],
)
def test_errors_name_key_value_and_what_is_valid(arch, words):
    with pytest.raises(ValueError, match=words):
        resolve_arch(arch)


def test_a_wrong_type_is_named():
    with pytest.raises(TypeError, match='arch is a int; a name or a dict'):
        resolve_arch(5)
