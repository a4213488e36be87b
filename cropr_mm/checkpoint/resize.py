"""Pretrained embeddings on another grid or patch size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.sizes import surely


def resize_position_embedding(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Resize an absolute positional embedding (1, prefix + N, D) from one grid to another.

    Bicubic with antialiasing, as timm does; the prefix tokens' embeddings stay as they are.
    """
    if all(surely(before == after) for before, after in zip(old, new)):
        return pos_embed
    head, grid = pos_embed[:, :prefix], pos_embed[:, prefix:]
    grid = grid.float().unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode='bicubic', antialias=True, align_corners=False)
    return torch.cat([head, grid.flatten(2).transpose(1, 2).to(head.dtype)], dim=1)


def resize_patch_embedding(weight: Tensor, patch_size: int) -> Tensor:
    """Resize the kernel of a patch embedding (D, 3, h, w) to ``patch_size``.

    The new kernel is the one that answers to a resized patch as the old one answered to the patch, in the sense of
    least squares (FlexiViT, arXiv 2212.08013, section 3.4): with R the matrix that resizes a patch (bicubic,
    antialiased), it solves Rᵀ w' = w. Resizing the kernel itself would scale its answers with the area.
    """
    old = (weight.shape[2], weight.shape[3])
    if old == (patch_size, patch_size):
        return weight
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    # Row i is what becomes of a patch with a 1 at its pixel i: Rᵀ.
    resized = F.interpolate(basis, (patch_size, patch_size), mode='bicubic', antialias=True).flatten(1)
    new = weight.flatten(2).double() @ torch.linalg.pinv(resized).T
    return new.unflatten(2, (patch_size, patch_size)).to(weight.dtype)
