"""Pretrained embeddings on another grid or patch size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position_embedding(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Resize an absolute position embedding (1, prefix + N, D) from one grid to another.

    Bicubic with antialiasing, as timm does; the prefix tokens' embeddings stay as they are.
    """
    if old == new:
        return pos_embed
    head, grid = pos_embed[:, :prefix], pos_embed[:, prefix:]
    grid = grid.float().unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode='bicubic', antialias=True, align_corners=False)
    return torch.cat([head, grid.flatten(2).transpose(1, 2).to(head.dtype)], dim=1)


def resize_patch_embedding(weight: Tensor, patch_size: int) -> Tensor:
    """Resize the kernel of a patch embedding (D, 3, h, w) to ``patch_size`` (bicubic, as EVA-02's 14 to 16)."""
    return F.interpolate(weight.float(), (patch_size,) * 2, mode='bicubic', antialias=True).to(weight.dtype)
