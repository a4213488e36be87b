"""The parts of a plain Vision Transformer, with the parameter names that timm uses."""

from __future__ import annotations

import math
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.sizes import opened, surely
from .archs import Arch
from .rotary import Rotary, apply_rotary
from .windows import Windows, attend, windowed_attention

AttentionWatcher = Callable[[Tensor, Tensor], None]
"""Called with the queries and keys (B, M, heads, head_dim) of an attention, rotated, before the softmax."""


class PatchEmbed(nn.Module):
    """Images to patch tokens: one convolution with stride = kernel = patch size."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W), any H and W → tokens (B, N, D) in raster order and the patch grid.

        Sides that are no multiple of the patch size are padded with zeros on the right and at the bottom.
        """
        pad_h, pad_w = (self._missing(side) for side in images.shape[-2:])
        if not surely(pad_h + pad_w == 0):
            images = F.pad(images, (0, pad_w, 0, pad_h))
        x = self.proj(images)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])

    def _missing(self, side: int) -> int:
        """Pixels to whole patches."""
        patches = opened((side + self.patch_size - 1) // self.patch_size, least=2)
        return patches * self.patch_size - side


class Attention(nn.Module):
    """Multi-head self-attention over the tokens that are there, or among those of each window (fused kernels)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        dim = arch.embed_dim
        self.num_heads = arch.num_heads
        self.fused, self.key_bias = arch.qkv_fused, arch.key_bias
        self.rotary_halves = arch.rotary == 'dinov3'
        if not arch.qkv_fused:
            self.q_proj = nn.Linear(dim, dim)
            self.k_proj = nn.Linear(dim, dim, bias=arch.key_bias)
            self.v_proj = nn.Linear(dim, dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=arch.key_bias)
            if not arch.key_bias:
                self.q_bias = nn.Parameter(torch.zeros(dim))
                self.v_bias = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim, eps=arch.norm_eps) if arch.attn_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.num_heads, -1)
        if not self.fused:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            q, k, v = (proj(x).unflatten(-1, heads) for proj in projections)
        else:
            bias = self.qkv.bias if self.key_bias else torch.cat([self.q_bias, self.q_bias * 0, self.v_bias])
            q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, *heads)).unbind(2)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        windows: Windows | None = None,
        watch: AttentionWatcher | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """(B, M, D) → (B, M, D). A token of ``size`` (B, M) n is attended to as n equal ones (ToMe, equation 1)."""
        q, k, v = self._qkv(x)
        if rotary is not None:
            q, k = (apply_rotary(t, rotary.table, self.rotary_halves) for t in (q, k))
        if watch is not None:
            watch(q, k)
        if windows is not None:
            x = windowed_attention(q, k, v, windows)
        else:
            x = attend(q, k, v, None if size is None else size.log().to(q.dtype)[:, None, None])
        return self.proj(self.norm(x.flatten(2)))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """SiLU-gated MLP (Shazeer, arXiv 2002.05202), with an optional norm before the last layer.

    ``packed`` holds gate and value in one layer ``fc1``, otherwise in ``fc1_g`` and ``fc1_x``.
    """

    def __init__(self, dim: int, hidden: int, packed: bool, sub_norm: bool, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.packed = packed
        if packed:
            self.fc1 = nn.Linear(dim, 2 * hidden)
        else:
            self.fc1_g = nn.Linear(dim, hidden)
            self.fc1_x = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps) if sub_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1) if self.packed else (self.fc1_g(x), self.fc1_x(x))
        return self.fc2(self.norm(F.silu(gate) * value))


class LayerScale(nn.Module):
    """One learned factor per channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al., arXiv 1603.09382)."""

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.drops = rate, rate > 0
        # A tensor: compilers make code anew for each value of a number.
        self.register_buffer('keep', torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drops:
            return x
        kept = torch.bernoulli(self.keep.expand(x.shape[0], 1, 1)) / self.keep
        return x * kept.to(x.dtype)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, arch: Arch, drop_path: float) -> None:
        super().__init__()
        dim, hidden = arch.embed_dim, int(arch.embed_dim * arch.mlp_ratio)
        scale = arch.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=arch.norm_eps)
        self.attn = Attention(arch)
        self.ls1 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=arch.norm_eps)
        self.mlp: nn.Module = Mlp(dim, hidden)
        if arch.mlp != 'gelu':
            self.mlp = SwiGLU(dim, hidden, arch.mlp == 'swiglu_packed', arch.sub_norm, arch.norm_eps)
        self.ls2 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        windows: Windows | None = None,
        watch: AttentionWatcher | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """(B, M, D) → (B, M, D)."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rotary, windows, watch, size)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def init_vit_weights(module: nn.Module) -> None:
    """Truncated normal with std 0.02 for linear layers, biases 0; Lecun normal for the patch embedding."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=math.sqrt(1 / fan_in))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
