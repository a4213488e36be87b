"""The architectures that CroprViT knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from ..utils.checks import check_flag, check_integer, check_number, is_number

FAMILIES = ('vit', 'eva02', 'dinov2', 'dinov3')
MLPS = ('gelu', 'swiglu', 'swiglu_packed')
ROTARY = (None, 'eva02', 'dinov3')


@dataclass(frozen=True)
class Arch:
    """Shape of a plain Vision Transformer.

    Attributes:
        family: whose defaults a dict is completed with: ``'vit'`` (Dosovitskiy et al., arXiv 2010.11929), ``'eva02'``
            (Fang et al., arXiv 2303.11331), ``'dinov2'`` (Oquab et al., arXiv 2304.07193) or ``'dinov3'`` (Siméoni
            et al., arXiv 2508.10104).
        embed_dim: channels D of a token.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden channels of the MLP per channel of a token.
        class_token: whether there is a [CLS] token before the patch tokens.
        num_registers: learned tokens between the [CLS] token and the patch tokens (Darcet et al., arXiv 2309.16588).
        position_embedding: whether patch tokens get a learned absolute positional embedding. The [CLS] token has an
            entry in it where there are no registers; with registers no prefix token has one.
        rotary: positional embedding of queries and keys (RoPE): None, ``'eva02'`` or ``'dinov3'``, which differ in
            coordinates, frequencies and channel pairs (see :func:`~cropr_mm.models.rotary.rotary_angles`).
        rotary_ref: side of the grid, in patches, that the angles of ``'eva02'`` are scaled to.
        mlp: ``'gelu'``, ``'swiglu'`` (gate and value in two layers) or ``'swiglu_packed'`` (in one).
        sub_norm: LayerNorm inside the SwiGLU.
        attn_norm: LayerNorm between attention and its output projection (EVA-02's CLIP models).
        qkv_fused: queries, keys and values from one linear layer.
        key_bias: whether keys have a bias; queries and values always have one.
        layer_scale: initial value of a learned factor per channel after attention and MLP (Touvron et al.,
            arXiv 2103.17239), or None for no such factor.
        norm_eps: epsilon of the LayerNorms.
    """

    family: str = 'vit'
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    num_registers: int = 0
    position_embedding: bool = True
    rotary: str | None = None
    rotary_ref: int = 16
    mlp: str = 'gelu'
    sub_norm: bool = False
    attn_norm: bool = False
    qkv_fused: bool = True
    key_bias: bool = True
    layer_scale: float | None = None
    norm_eps: float = 1e-6

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patch tokens: the [CLS] token, then the registers."""
        return int(self.class_token) + self.num_registers

    @property
    def num_embedded_prefix_tokens(self) -> int:
        """Prefix tokens that have an entry in the absolute positional embedding."""
        return int(self.class_token and not self.num_registers)


def _eva02(embed_dim: int, depth: int, num_heads: int, large: bool) -> Arch:
    # The two larger EVA-02 models have separate projections and a sub-norm, the two smaller ones have neither.
    return Arch(
        'eva02',
        embed_dim,
        depth,
        num_heads,
        mlp_ratio=4 * 2 / 3,
        rotary='eva02',
        key_bias=False,
        mlp='swiglu' if large else 'swiglu_packed',
        sub_norm=large,
        qkv_fused=not large,
    )


def _dinov2(embed_dim: int, depth: int, num_heads: int, **settings: Any) -> Arch:
    return Arch('dinov2', embed_dim, depth, num_heads, layer_scale=1e-5, **settings)


def _dinov3(embed_dim: int, depth: int, num_heads: int, **settings: Any) -> Arch:
    return Arch(
        'dinov3',
        embed_dim,
        depth,
        num_heads,
        num_registers=4,
        position_embedding=False,
        rotary='dinov3',
        key_bias=False,
        layer_scale=1e-5,
        norm_eps=1e-5,
        **settings,
    )


_DINOV2 = {
    'dinov2-small': _dinov2(384, 12, 6),
    'dinov2-base': _dinov2(768, 12, 12),
    'dinov2-large': _dinov2(1024, 24, 16),
    'dinov2-giant': _dinov2(1536, 40, 24, mlp='swiglu_packed', mlp_ratio=8 / 3),
}

ARCHS: dict[str, Arch] = {
    'vit-tiny': Arch('vit', 192, 12, 3),
    'vit-small': Arch('vit', 384, 12, 6),
    'vit-base': Arch('vit', 768, 12, 12),
    'vit-large': Arch('vit', 1024, 24, 16),
    'vit-huge': Arch('vit', 1280, 32, 16),
    'eva02-tiny': _eva02(192, 12, 3, large=False),
    'eva02-small': _eva02(384, 12, 6, large=False),
    'eva02-base': _eva02(768, 12, 12, large=True),
    'eva02-large': _eva02(1024, 24, 16, large=True),
    **_DINOV2,
    **{f'{name}-reg4': replace(arch, num_registers=4) for name, arch in _DINOV2.items()},
    'dinov3-small': _dinov3(384, 12, 6),
    'dinov3-small-plus': _dinov3(384, 12, 6, mlp='swiglu'),
    'dinov3-base': _dinov3(768, 12, 12),
    'dinov3-large': _dinov3(1024, 24, 16),
    'dinov3-huge-plus': _dinov3(1280, 32, 20, mlp='swiglu'),
    'dinov3-7b': _dinov3(4096, 40, 32, mlp='swiglu', mlp_ratio=2.0),
}

_FAMILY_DEFAULTS = {family: ARCHS[f'{family}-base'] for family in FAMILIES}


def resolve_arch(arch: str | Mapping[str, Any]) -> Arch:
    """Look up a named architecture or complete a dict with its family's defaults.

    Raises:
        ValueError: an unknown name, family or key, or a width that the heads do not divide.
        TypeError: neither a name nor a dict.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            close = get_close_matches(arch, ARCHS, n=1)
            hint = f' (did you mean {close[0]!r}?)' if close else ''
            raise ValueError(
                f'arch={arch!r} is unknown{hint}; valid are {", ".join(ARCHS)}, or a dict with '
                'family, embed_dim, depth, num_heads'
            )
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch is a {type(arch).__name__}; a name or a dict is expected')
    settings = dict(arch)
    family = settings.get('family', 'vit')
    if family not in FAMILIES:
        raise ValueError(f'arch.family={family!r} is unknown; valid are {", ".join(FAMILIES)}')
    known = {f.name: getattr(_FAMILY_DEFAULTS[family], f.name) for f in fields(Arch)}
    unknown = sorted(str(key) for key in set(settings) - set(known))
    if unknown:
        raise ValueError(f'arch has unknown keys {", ".join(unknown)}; valid are {", ".join(known)}')
    resolved = Arch(**{**known, **settings})
    _check(resolved)
    return resolved


def _check(arch: Arch) -> None:
    for key, least in (('embed_dim', 1), ('depth', 1), ('num_heads', 1), ('num_registers', 0), ('rotary_ref', 1)):
        check_integer(f'arch.{key}', getattr(arch, key), least)
    for key in ('class_token', 'position_embedding', 'sub_norm', 'attn_norm', 'qkv_fused', 'key_bias'):
        check_flag(f'arch.{key}', getattr(arch, key))
    if not is_number(arch.mlp_ratio) or int(arch.embed_dim * arch.mlp_ratio) < 1:
        raise ValueError(
            f'arch.mlp_ratio={arch.mlp_ratio!r}; a number above 0 is expected, and at least one hidden channel '
            f'(arch.embed_dim={arch.embed_dim})'
        )
    check_number('arch.norm_eps', arch.norm_eps, above=0)
    for key, choices in (('mlp', MLPS), ('rotary', ROTARY)):
        value = getattr(arch, key)
        if value not in choices:
            raise ValueError(f'arch.{key}={value!r}; valid are {", ".join(map(repr, choices))}')
    multiple = 4 * arch.num_heads if arch.rotary else arch.num_heads
    if arch.embed_dim % multiple:
        raise ValueError(
            f'arch.embed_dim={arch.embed_dim} with arch.num_heads={arch.num_heads}; a multiple of {multiple} is '
            'expected'
        )
    scale = arch.layer_scale
    if scale is not None and (not is_number(scale) or scale < 0):
        raise ValueError(f'arch.layer_scale={scale!r}; None or an initial value of 0 or more is expected')
