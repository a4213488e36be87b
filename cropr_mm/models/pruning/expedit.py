"""Token clustering and reconstruction (Expedit, arXiv 2210.01035): no training, no parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ...tokens import Removed, Tokens, rank, take_rows
from ...utils.checks import check_integer, check_number
from .base import BaseReducer, Context


@MODELS.register_module()
class ExpeditReducer(BaseReducer):
    """Clusters the patch tokens, and brings each position back from the centres nearest to it (Expedit, section 3).

    The centres begin as the means of compact regions of the image, equal in size. In each iteration of soft k-means
    every token belongs to them by the softmax of its similarity, and they become the means of what belongs to them
    (token clustering layer). Each continues at the position of the token in the middle of its region. All other
    positions come back as the mean of their nearest centres, weighted by the softmax of the similarity that they had
    when they left (token reconstruction layer).

    Three things differ from the paper. Similar is what has a small squared distance after each token is normalised to
    length 1, so that one ``temperature`` fits all models. A token may belong to any centre, where Expedit looks at
    those around it. And the positions at which centres stand come back with the centre alone.

    Meant for one block half-way, ``keep={5: 0.3}``. Attention does not weigh centres by size, as published. Padding is
    clustered apart, in as few centres as there can be. It works on any finished dense model, and trains as the model
    does; gradients pass through the means and not through similarities. Not in models with windows.

    Args:
        neighbors: k, centres that a position comes back from.
        iterations: of k-means.
        temperature: of both softmaxes; the smaller, the more the nearest centre counts.

    CroprViT fills in the other arguments.

    Raises:
        ValueError: a setting out of range.
    """

    fits_windows = False

    def __init__(self, neighbors: int = 4, iterations: int = 5, temperature: float = 0.05, **shape: Any) -> None:
        super().__init__(**shape)
        self.neighbors = check_integer('pruning.pruner.neighbors', neighbors)
        self.iterations = check_integer('pruning.pruner.iterations', iterations)
        self.temperature = check_number('pruning.pruner.temperature', temperature, above=0)

    def forward(self, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        position, prefix = tokens.position, tokens.num_prefix
        centers = position.shape[1] - count
        padding = None if context.padding is None else context.padding.gather(1, position)
        with torch.no_grad():
            region, seed = divide(position, centers, context.grid, padding)
            share, similarity = self._cluster(tokens.patches, region, seed, padding)
            gone = rank(torch.ones_like(position, dtype=torch.float32).scatter(1, seed, 0))[:, :count]
            nearest = take_rows(similarity.transpose(1, 2), gone).topk(min(self.neighbors, centers), dim=-1)
            own = share if tokens.size is None else share * tokens.size[:, prefix:].unsqueeze(1)
            size = own.sum(dim=2)
            part = own / size.unsqueeze(-1).clamp(min=torch.finfo(torch.float32).tiny)
        # From one of the tokens on: where all are equal, so is the mean.
        values = tokens.patches.float()
        x = values[:, :1] + part @ (values - values[:, :1])
        at = position.gather(1, seed)
        left = Tokens(
            torch.cat([tokens.prefix, x.to(tokens.x.dtype)], dim=1),
            torch.cat([tokens.all_positions[:, :prefix], at], dim=1),
            prefix,
            None if tokens.size is None else torch.cat([tokens.size[:, :prefix], size], dim=1),
        )
        owner = at.gather(1, nearest.indices.flatten(1)).unflatten(1, nearest.indices.shape[1:])
        return left, [Removed(position.gather(1, gone), owner=owner, weight=nearest.values.softmax(dim=-1))]

    def _cluster(self, x: Tensor, region: Tensor, seed: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Soft k-means of tokens (B, M, D): how much of each token belongs to each centre, and similarities after that.

        Both (B, K, M); shares of a token add up to 1.
        """
        features = F.normalize(x.float(), dim=-1)
        share = (region.unsqueeze(1) == torch.arange(seed.shape[1], device=x.device).unsqueeze(1)).float()
        apart = None if padding is None else padding.gather(1, seed).unsqueeze(2) != padding.unsqueeze(1)
        similarity = share
        for i in range(self.iterations + 1):
            share = similarity.softmax(dim=1) if i else share
            # |a - b|² = 2 - 2 · cosine
            centers = F.normalize(share @ features, dim=-1)
            similarity = (2 * (centers @ features.transpose(1, 2)).float() - 2) / self.temperature
            if apart is not None:
                similarity = similarity.masked_fill(apart, torch.finfo(torch.float32).min)
        return share, similarity


def divide(position: Tensor, count: int, grid: tuple[int, int], padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Divide the image into compact regions with as many tokens each, up to one.

    A path runs to and fro through bands of the image, which are as high as a region is wide; regions are its parts.

    Args:
        position: (B, M), of the tokens.
        count: K, 0 < K ≤ M.
        grid: (H, W).
        padding: (B, M) bool, or None. Padding has regions of its own, as few as there can be.

    Returns:
        The region of each token (B, M), 0 to K - 1, and the row of the token in the middle of each region (B, K).
    """
    height, width = grid
    row, column = position // width, position % width
    band = row // max(1, round((height * width / count) ** 0.5))
    along = torch.where(band % 2 == 1, width - 1 - column, column)
    place = (band * width + along) * height + row
    if padding is not None:
        place = place + padding * (height * width * height)
    path = place.argsort(dim=1)
    start = _starts(path, count, padding)
    end = F.pad(start[:, 1:], (0, 1), value=path.shape[1])
    passed = torch.zeros_like(path).scatter(1, start, 1).cumsum(dim=1) - 1
    return torch.zeros_like(path).scatter(1, path, passed), path.gather(1, (start + end) // 2)


def _starts(path: Tensor, count: int, padding: Tensor | None) -> Tensor:
    """Places on the path (B, M) at which regions begin (B, K), ascending."""
    index, length = torch.arange(count, device=path.device), path.shape[1]
    if padding is None:
        return (index * length // count).expand(path.shape[0], -1)
    pads = padding.sum(dim=1, keepdim=True)
    own = length - pads
    for_pads = torch.where(pads > 0, (count - own).clamp(min=1), 0).clamp(max=count - (own > 0).to(own.dtype))
    for_own = count - for_pads
    later = own + (index - for_own) * pads // for_pads.clamp(min=1)
    return torch.where(index < for_own, index * own // for_own.clamp(min=1), later)
