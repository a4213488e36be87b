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
    ends = [torch.full_like(images[:, 0, 0, 0], side, dtype=torch.int64) for side in (height, width)]
    for around in (True, False):
        corner = (ends[0] - 1) * width + ends[1] - 1
        colour = images.flatten(2).gather(2, corner[:, None, None].expand(-1, images.shape[1], 1)).unsqueeze(3)
        # Less than half a grey level. Batches that mm resizes (YOLOX) hold their padding to a few decimals only.
        tolerance = 1e-3 * colour.abs().amax(dim=1).clamp(min=1)
        distance = (images - colour).abs_().amax(dim=1)
        if not around:
            inside = [side <= end[:, None] for side, end in zip(sides, ends)]
            distance = distance * inside[0][:, :, None] * inside[1][:, None, :]
        other = [~(distance.amax(dim=dim) <= tolerance[:, 0]) for dim in (2, 1)]  # NaN is no padding
        # An image of one colour ends at its first pixel.
        ends = [(differs * side).amax(dim=1).clamp(min=1) for differs, side in zip(other, sides)]
    below, beside = (side[::patch_size] > end[:, None] for side, end in zip(sides, ends))
    return (below[:, :, None] | beside[:, None, :]).flatten(1)
