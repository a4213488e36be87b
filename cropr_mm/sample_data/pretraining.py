"""Pre-training of a small dense ViT on crops of 32 × 32 pixels with one object each.

From scratch on scenes a small ViT does not learn to tell objects apart in reasonable time, and then it does not matter
which tokens are kept. On crops it does: the [CLS] token names the object, each patch token the classes of its pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..models import CroprViT
from .photo_scenes import OUTLINE, outline
from .scenes import CROP_SIZE

__all__ = ['SCENE_SIZE', 'CropAccuracy', 'CropModel', 'mosaic', 'patch_shares']

SCENE_SIZE = 96
_MEAN, _STD = 127.5, 58.0
_WHOLE, _AWAY = 0.15, 0.2  # share of the photographs in a mosaic that stay whole, and that are left out


class CropModel(BaseModel):
    """A ViT for whole scenes, trained on crops: each batch takes another window of the scene's positional embedding.

    So every entry of the embedding is learned, with neighbours that fit, although no image fills the grid. Mosaics
    fill it.

    Args:
        arch: of the ViT.
        patch_size: pixels per patch side.
        num_objects: classes that the [CLS] token tells.
        num_classes: classes that the patch tokens tell.
        places: images (N, 3, 64, 64) uint8 and their stuff classes (N, 64, 64) uint8, 255 for none: learn from
            mosaics of photographs on them, see :func:`mosaic`. The classes are then those of the stuff and those of
            the objects.
        drop_path_rate: see :class:`~cropr_mm.PlainViT`.
    """

    def __init__(
        self,
        arch: dict[str, Any],
        patch_size: int,
        num_objects: int,
        num_classes: int,
        places: tuple[Tensor, Tensor] | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size = 2 * CROP_SIZE if places else CROP_SIZE
        self.vit = CroprViT(arch, img_size=size, patch_size=patch_size, drop_path_rate=drop_path_rate)
        self.object_head = nn.Linear(self.vit.embed_dims, num_objects)
        self.patch_head = nn.Linear(self.vit.embed_dims, num_classes)
        for name, tensor in zip(('places', 'stuff'), places or (None, None)):
            self.register_buffer(name, tensor, persistent=False)
        self.window = size // patch_size
        self.side = self.window if places else SCENE_SIZE // patch_size
        self.vit.pos_embed = nn.Parameter(_sine_embedding(self.side, self.vit.embed_dims))

    def forward(self, images: Tensor, category: Tensor, labels: Tensor | None = None, mode: str = 'tensor') -> Any:
        """Images (B, 3, 32, 32) uint8, category (B,) int64, and without places labels (B, 32, 32) uint8."""
        objects = F.one_hot(category, self.object_head.out_features).float()
        pixels, learns = images.float(), mode == 'loss'
        if self.places is None:
            assert labels is not None
            shares = patch_shares(labels, self.vit.patch_size, self.patch_head.out_features)
        else:
            across = int(torch.randint(2, 4, ())) if learns else 2
            backgrounds = self._backgrounds(len(images) // across**2, learns)
            pixels, objects, shares = mosaic(pixels, objects, *backgrounds, self.vit.patch_size, across, vary=learns)
        slack = self.side - self.window + 1
        row, column = torch.randint(slack, (2,)).tolist() if learns else (slack // 2, slack // 2)
        feature = torch.func.functional_call(
            self.vit, {'pos_embed': self._positions(row, column)}, ((pixels - _MEAN) / _STD,)
        )[0]
        assert feature.prefix is not None
        named, patches = self.object_head(feature.prefix[:, 0]), self.patch_head(feature.tokens)
        if learns:
            return dict(
                loss_object=F.cross_entropy(named.float(), objects),
                loss_patch=F.cross_entropy(patches.flatten(0, 1).float(), shares.flatten(0, 1)),
            )
        there = objects.gather(1, named.argmax(-1, keepdim=True))[:, 0] > 0
        right, known = patches.argmax(-1) == shares.argmax(-1), shares.sum(-1) > 0.5
        right = (right & known).sum(-1) / known.sum(-1).clamp(min=1)
        return [dict(object=float(o), patch=float(p)) for o, p in zip(there, right)]

    def _backgrounds(self, count: int, learns: bool) -> tuple[Tensor, Tensor]:
        """Places (count, 3, H, W) and their stuff (count, K, H, W), float32."""
        rows = torch.randint(len(self.places), (count,)) if learns else torch.arange(count) % len(self.places)
        stuff = self.stuff[rows]
        classes = torch.arange(self.patch_head.out_features - self.object_head.out_features, device=stuff.device)
        masks = (stuff[:, None] == classes[:, None, None]).float()
        flip = [-1] if learns and torch.rand(()) < 0.5 else []
        return self.places[rows].float().flip(flip), masks.flip(flip)

    def _positions(self, row: int, column: int) -> Tensor:
        positions = self.vit.pos_embed
        assert positions is not None
        window = positions[:, 1:].unflatten(1, (self.side, self.side))
        window = window[:, row : row + self.window, column : column + self.window].flatten(1, 2)
        return torch.cat([positions[:, :1], window], dim=1)


class CropAccuracy(BaseMetric):
    """Share of crops of which an object, and of patches of which the main class is named right, in percent."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {key: 100 * sum(result[key] for result in results) / len(results) for key in ('object', 'patch')}


def patch_shares(labels: Tensor, patch_size: int, num_classes: int) -> Tensor:
    """Share of each class in each patch of labels (B, H, W): (B, patches, C)."""
    shares = F.one_hot(labels.long(), num_classes).float().unfold(1, patch_size, patch_size)
    return shares.unfold(2, patch_size, patch_size).mean((-2, -1)).flatten(1, 2)


def mosaic(
    photos: Tensor,
    objects: Tensor,
    backgrounds: Tensor,
    stuff: Tensor,
    patch_size: int,
    across: int,
    vary: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make mosaics of ``across`` × ``across`` photographs, each cut out and blended into one background.

    A mosaic is as large as two photographs, whatever ``across``, and shifted by any number of pixels, around the edge:
    so photographs have several sizes, stand anywhere, and each token must find out which of its neighbours belong to
    its own.

    Args:
        photos: (B, 3, S, S) float32, 0 to 255; what is left over of B / across² is not used.
        objects: (B, C) float32, one-hot class of each photograph.
        backgrounds: (M, 3, 2 S, 2 S) float32, 0 to 255, for at least B / across² mosaics.
        stuff: (M, K, 2 S, 2 S) float32, one-hot class of each of their pixels, all zero where it has none.
        patch_size: pixels per patch side.
        across: photographs per side.
        vary: mirror, zoom, shift and recolour each photograph, cut it out by an outline of its own (some not at all,
            some away), and shift the mosaic.

    Returns:
        Mosaics (M, 3, 2 S, 2 S), the share of each class among their photographs (M, C), and that of each class in
        their patches, stuff first (M, patches, K + C).
    """
    count, side = len(photos) // across**2, 2 * photos.shape[-1]
    photos, objects = photos[: count * across**2], objects[: count * across**2]
    cover = _outline(len(photos), photos.shape[-1], vary).to(photos)
    photos = _vary(photos) if vary else photos
    tiles = torch.cat([photos, cover, objects[:, :, None, None] * (cover >= 0.5)], dim=1)
    tiles = tiles.unflatten(0, (count, across, across)).permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3)
    if across != 2:
        tiles = F.interpolate(tiles, size=(side, side), mode='bilinear', align_corners=False, antialias=True)
    if vary:
        tiles = tiles.roll(torch.randint(side, (2,)).tolist(), dims=(2, 3))
    photos, cover, named = tiles[:, :3], tiles[:, 3:4], tiles[:, 4:]
    left = (1 - named.sum(dim=1, keepdim=True)).clamp(min=0)
    shares = torch.cat([stuff[:count] * left, named], dim=1)
    shares = F.avg_pool2d(shares, patch_size).flatten(2).transpose(1, 2)
    area = named.mean(dim=(2, 3))
    images = backgrounds[:count] + cover * (photos - backgrounds[:count])
    return images, area / area.sum(dim=1, keepdim=True).clamp(min=1e-6), shares


def _outline(count: int, side: int, vary: bool) -> Tensor:
    """How much of its square each photograph covers, (B, 1, S, S) float32."""
    looks = (
        torch.empty(count, 1, 1).uniform_(*span) if vary else torch.full((count, 1, 1), sum(span) / 2)
        for span in OUTLINE
    )
    line = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    cover = torch.from_numpy(outline(line, line[:, None], side, *(look.numpy() for look in looks)))
    if vary:
        chance = torch.rand(count)
        cover[chance < _WHOLE] = 1
        cover[chance > 1 - _AWAY] = 0
    return cover[:, None]


def _vary(images: Tensor) -> Tensor:
    """Mirror, zoom, shift and recolour images (B, 3, S, S), each by itself."""
    count, _, side, _ = images.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape, device=images.device).uniform_(low, high)

    zoom = draw(0.75, 1.15)
    place = torch.zeros(count, 2, 3, device=images.device)
    place[:, 0, 0], place[:, 1, 1] = draw(-1, 1).sign() * zoom, zoom
    place[:, :, 2] = draw(-0.25, 0.25, 2)
    grid = F.affine_grid(place, [count, 3, side, side], align_corners=False)
    images = F.grid_sample(images, grid, mode='bilinear', padding_mode='reflection', align_corners=False)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * draw(0.5, 1.4, 1, 1, 1)  # saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * draw(0.6, 1.4, 1, 1, 1) + draw(-30, 30, 1, 1, 1) + draw(-12, 12, 3, 1, 1)


def _sine_embedding(side: int, dim: int) -> Tensor:
    """Start of the positional embedding (1, 1 + side², dim): sines of row and column, zero for the [CLS] token."""
    waves = 30.0 ** -(torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(side)[:, None] * waves
    line = 0.5 * torch.cat([angle.sin(), angle.cos()], dim=1)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=-1)
    return F.pad(grid.flatten(0, 1), (0, 0, 1, 0))[None].contiguous()
