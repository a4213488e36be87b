"""Padding is found in the pixels."""

import pytest
import torch
import torch.nn.functional as F
from helpers import exports_open_sizes
from hypothesis import given
from hypothesis import strategies as st

from cropr_mm.models.pruning.padding import padding_patches

SIDE = st.integers(5, 20)


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=3), st.sampled_from([None, 0, 114]), st.booleans())
def test_padding_patches_are_those_beyond_the_image(sizes, pipeline, normalised):
    """Images of different sizes, padded by the pipeline (to a square) and by the preprocessor, as mm does both."""
    generator = torch.Generator().manual_seed(len(sizes) + sum(h * w for h, w in sizes))
    images = torch.zeros(len(sizes), 3, 22, 22)
    for image, (height, width) in zip(images, sizes):
        content = torch.randint(0, 256, (3, height, width), generator=generator).float()
        content[:, : height // 2, : width // 2] = 0  # a dark part inside is no padding
        content[:, -1, 0], content[:, 0, -1] = 20, 20  # nor is a dark border that is not of one colour
        content[:, -1, -1] = 21
        side = max(height, width)
        padded = content if pipeline is None else F.pad(content, (0, side - width, 0, side - height), value=pipeline)
        if normalised:
            mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
            padded = (padded - mean[:, None, None]) / std[:, None, None]
        image[:, : padded.shape[1], : padded.shape[2]] = padded
    found = padding_patches(images, 4).view(-1, 6, 6)
    for padding, (height, width) in zip(found, sizes):
        rows, columns = torch.arange(6) * 4 >= height, torch.arange(6) * 4 >= width
        assert torch.equal(padding, rows[:, None] | columns)


def test_padding_survives_the_resizing_of_batches():
    """mmdetection's BatchSyncRandomResize interpolates, which leaves padding equal to a few decimals only."""
    images = torch.randint(0, 256, (1, 3, 64, 64)).float()
    images[:, :, 40:] = 114 / 255 * 255.1  # no number that a float holds exactly
    resized = F.interpolate(images, (96, 96), mode='bilinear', align_corners=False)
    assert padding_patches(resized, 8).view(12, 12)[:, 0].tolist() == [row * 8 > 60 for row in range(12)]


@pytest.mark.parametrize('value', [0.0, 3.0, float('nan')])
def test_an_image_of_one_colour_has_a_first_patch(value):
    images = torch.full((1, 3, 8, 8), value)
    assert not padding_patches(images, 4)[0, 0] and padding_patches(images, 4).shape == (1, 4)


@exports_open_sizes
def test_padding_is_found_at_other_sizes_after_export():
    class Padding(torch.nn.Module):
        def forward(self, images):
            return padding_patches(images, 4)

    dim = {i: torch.export.Dim.AUTO for i in (0, 2, 3)}
    program = torch.export.export(Padding(), (torch.randn(2, 3, 16, 20),), dynamic_shapes=(dim,))
    images = torch.randn(3, 3, 24, 16)
    images[1, :, 10:] = 0
    assert torch.equal(program.module()(images), padding_patches(images, 4))
