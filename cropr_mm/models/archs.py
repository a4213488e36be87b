"""The architectures that CroprViT knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

FAMILIES = ('vit', 'eva02')


@dataclass(frozen=True)
class Arch:
    """Shape of a plain Vision Transformer.

    Attributes:
        family: ``'vit'`` (Dosovitskiy et al., arXiv 2010.11929) or ``'eva02'`` (Fang et al., arXiv 2303.11331).
        embed_dim: channels D of a token.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden channels of the MLP per channel of a token.
        class_token: whether a class token goes in front of the patch tokens.
        rotary: rotary position embedding of queries and keys (axial, 10000 base).
        rotary_ref: side of the grid, in patches, that the rotary angles are scaled to.
        mlp: ``'gelu'``, ``'swiglu'`` (gate and value in two layers) or ``'swiglu_packed'`` (in one).
        sub_norm: LayerNorm inside the SwiGLU.
        qkv_fused: queries, keys and values from one linear layer.
        key_bias: whether keys have a bias.
    """

    family: str = 'vit'
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    rotary: bool = False
    rotary_ref: int = 16
    mlp: str = 'gelu'
    sub_norm: bool = False
    qkv_fused: bool = True
    key_bias: bool = True


def _eva02(embed_dim: int, depth: int, num_heads: int, large: bool) -> Arch:
    # The two larger EVA-02 models have separate projections and a sub-norm, the two smaller ones have neither.
    return Arch(
        'eva02',
        embed_dim,
        depth,
        num_heads,
        mlp_ratio=4 * 2 / 3,
        rotary=True,
        key_bias=False,
        mlp='swiglu' if large else 'swiglu_packed',
        sub_norm=large,
        qkv_fused=not large,
    )


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
}

_FAMILY_DEFAULTS = {'vit': ARCHS['vit-base'], 'eva02': ARCHS['eva02-base']}


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
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f'arch has unknown keys {", ".join(unknown)}; valid are {", ".join(known)}')
    resolved = Arch(**{**known, **settings})
    for key in ('embed_dim', 'depth', 'num_heads'):
        value = getattr(resolved, key)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'arch.{key}={value!r}; a positive integer is expected')
    multiple = 4 * resolved.num_heads if resolved.rotary else resolved.num_heads
    if resolved.embed_dim % multiple:
        raise ValueError(
            f'arch.embed_dim={resolved.embed_dim} with {resolved.num_heads} heads; a multiple of {multiple} is expected'
        )
    if resolved.mlp not in ('gelu', 'swiglu', 'swiglu_packed'):
        raise ValueError(f"arch.mlp={resolved.mlp!r}; valid are 'gelu', 'swiglu', 'swiglu_packed'")
    return resolved
