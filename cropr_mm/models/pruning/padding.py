"""Where the padding of a batch lies, which is pruned first."""

from __future__ import annotations

import torch
from torch import Tensor


def padding_patches(images: Tensor, patch_size: int) -> Tensor:
    """Patches beyond the image itself, where it was padded on the right or at the bottom.

    The data samples do not say where the image ends (mmcv's ``Pad`` sets ``img_shape`` to the padded size), the pixels
    do: padding is rows and columns of one colour at the border. Two kinds are looked for, one around the other: that
    of the data preprocessor, which gives a batch one size (mostly zeros after normalisation), and that of the pipeline
    (``Pad``: 114, or zeros before normalisation). Rows and columns of an image that end it in one colour count as
    padding, too.

    Args:
        images: (B, C, H, W), padded to whole patches or not.
        patch_size: pixels per patch side.

    Returns:
        (B, N) bool in raster order. Shapes and values need no synchronisation with the device.
    """
    height, width = images.shape[2:]
    sides = [torch.arange(1, side + 1, device=images.device) for side in (height, width)]
    end_y, end_x = _ends(images, images[:, :, -1:, -1:], sides)
    around = (sides[0] > end_y[:, None])[:, :, None] | (sides[1] > end_x[:, None])[:, None, :]
    corner = end_y * width + end_x - (width + 1)
    colour = images.flatten(2).gather(2, corner[:, None, None].expand(-1, images.shape[1], 1)).unsqueeze(3)
    end_y, end_x = _ends(images, colour, sides, around)
    below, beside = (side[::patch_size] > end[:, None] for side, end in zip(sides, (end_y, end_x)))
    return (below[:, :, None] | beside[:, None, :]).flatten(1)


def _ends(images: Tensor, colour: Tensor, sides: list[Tensor], around: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Last row and last column (B,), from 1, with a pixel of another colour (B, C, 1, 1), which is not ``around``."""
    # Less than half a grey level. Batches that mm resizes (YOLOX) hold their padding to a few decimals only.
    tolerance = 1e-3 * colour.abs().amax(dim=1).clamp(min=1)
    same = (images - colour).abs_().amax(dim=1) <= tolerance  # NaN is no padding
    if around is not None:
        same = same | around
    # An image of one colour ends at its first pixel.
    last_y, last_x = (side.masked_fill(same.all(dim=dim), 1).amax(dim=1) for dim, side in zip((2, 1), sides))
    return last_y, last_x
