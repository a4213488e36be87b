"""After which block each token was pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import CroprViT
from ..models.cropr_vit import find_backbone
from ..models.pruning.oracle import object_share
from ..models.pruning.supervision.targets import class_shares, label_map

KEPT = -1
"""In a map of exits: the token was never pruned."""


@dataclass
class Routing:
    """Exits in one forward pass of a backbone.

    Attributes:
        pruned: block → positions (B, R) of the patch tokens pruned after it.
    """

    pruned: dict[int, Tensor] = field(default_factory=dict)

    def exits(self, batch: int, grid: tuple[int, int]) -> Tensor:
        """Map of exits: (B, H, W) int64, the block after which each token was pruned, or ``KEPT``."""
        exits = torch.full((batch, grid[0] * grid[1]), KEPT)
        for block, positions in self.pruned.items():
            exits.scatter_(1, positions.cpu(), block)
        return exits.unflatten(1, grid)


@contextmanager
def record_routing(backbone: CroprViT) -> Iterator[Routing]:
    """Record the exits of the forward passes inside the ``with``; each pass replaces the one before."""
    routing = Routing()

    def forget(*_: Any) -> None:
        routing.pruned.clear()

    def listen(block: int, kept: Tensor, pruned: Tensor) -> None:
        routing.pruned[block] = pruned

    handle = backbone.register_forward_pre_hook(forget)
    backbone.prune_listeners.append(listen)
    try:
        yield routing
    finally:
        backbone.prune_listeners.remove(listen)
        handle.remove()


def predict_with_routing(model: Any, batch: dict[str, Any]) -> tuple[Any, Tensor, Tensor, list[Any]]:
    """Run one batch of a data loader through a model of mmseg or mmdet.

    Returns:
        The model's predictions, the map of exits (B, H, W), the preprocessed images, and the data samples as
        the model got them.
    """
    backbone = find_backbone(model)
    device = next(model.parameters()).device
    model.data_preprocessor.to(device)
    with torch.no_grad(), record_routing(backbone) as routing:
        data = model.data_preprocessor(batch, False)
        samples = [sample.clone() for sample in data['data_samples']]
        predictions = model(**data, mode='predict')
    images = data['inputs']
    return predictions, routing.exits(len(images), backbone.grid_of(*images.shape[-2:])), images, samples


def routing_shares(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    object_classes: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Share of the tokens on objects, and of those on background, that reach each block; and of each class.

    A token is on an object where objects cover at least half of its patch. It counts for each class by the share
    of its patch that the class covers; what no instance covers counts for ``background``.

    Args:
        model: a model of mmseg or mmdet with a CroprViT, in evaluation mode.
        batches: a data loader whose data samples carry labels.
        object_classes: label values that are objects, for segmentation; None takes the instances' masks.
        classes: names of the labels, in their order.

    Returns:
        ``object`` and ``background``: a list of shares, 0 to 1, one per block; ``object_tokens`` and
        ``background_tokens``: how many there were; ``images``; ``classes``: name → such a list, and
        ``class_tokens``: name → how many patches' worth of pixels there were, for each class that is there.

    Raises:
        ValueError: no labels, or no batch at all.
    """
    backbone = find_backbone(model)
    depth = backbone.depth
    reached = torch.zeros(2, depth, dtype=torch.float64)
    total = torch.zeros(2, dtype=torch.float64)
    names = [*classes, 'background']
    class_reached = torch.zeros(len(names), depth, dtype=torch.float64)
    class_total = torch.zeros(len(names), dtype=torch.float64)
    count = 0
    for batch in batches:
        _, exits, _, samples = predict_with_routing(model, batch)
        grid = (exits.shape[1], exits.shape[2])
        share = torch.stack([object_share(s, grid, backbone.patch_size, object_classes).cpu() for s in samples])
        exits = exits.flatten(1)
        exits = torch.where(exits == KEPT, depth, exits)
        there = torch.stack([exits >= block for block in range(depth)], dim=-1)  # (B, patches, blocks)
        if backbone.fusion:
            there[..., -1] = True
        for row, group in enumerate((share >= 0.5, share < 0.5)):
            total[row] += group.sum()
            reached[row] += there[group].sum(dim=0)
        if classes:
            covered = torch.stack([_covered(s, grid, backbone.patch_size, len(classes)).cpu() for s in samples])
            class_total += covered.sum(dim=(0, 1))
            class_reached += torch.einsum('bpc,bpd->cd', covered, there.to(covered))
        count += len(samples)
    if not count:
        raise ValueError('the data loader gave no batch')
    shares = (reached / total.clamp(min=1).unsqueeze(1)).tolist()
    return dict(
        object=shares[0],
        background=shares[1],
        object_tokens=int(total[0]),
        background_tokens=int(total[1]),
        images=count,
        classes={
            name: (row / tokens).tolist() for name, row, tokens in zip(names, class_reached, class_total) if tokens > 0
        },
        class_tokens={name: float(tokens) for name, tokens in zip(names, class_total) if tokens > 0},
    )


def _covered(sample: Any, grid: tuple[int, int], patch_size: int, num_classes: int) -> Tensor:
    """Share of each patch that each class covers, (H * W, C + 1) float64; the last column is no instance's.

    Instances of several classes may lie over the same pixels. Padding, and what has no label, is nobody's.
    """
    size = (grid[0] * patch_size, grid[1] * patch_size)
    if 'gt_instances' in sample and 'masks' in sample.gt_instances:
        masks, labels = sample.gt_instances.masks, sample.gt_instances.labels.cpu()
        stack = torch.as_tensor(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks).bool().cpu()
        height, width = stack.shape[-2:] if len(stack) else sample.img_shape[:2]
        planes = torch.zeros(num_classes + 1, height, width, dtype=torch.bool)
        for label in set(labels.tolist()):
            planes[label] = stack[labels == label].any(dim=0)
        planes[-1] = ~planes[:-1].any(dim=0)
        pixels = _at_batch_size(planes[None].float(), sample, size, 0)[0]
        return F.avg_pool2d(pixels, patch_size).flatten(1).t().double()
    label = label_map(sample, 'routing_shares').cpu().float()
    label = _at_batch_size(label[None], sample, size, num_classes)[0, 0].long()
    label = torch.where((label < 0) | (label > num_classes), num_classes, label)
    return F.pad(class_shares(label, patch_size, num_classes, num_classes), (0, 1)).double()


def _at_batch_size(pixels: Tensor, sample: Any, size: tuple[int, int], fill: float) -> Tensor:
    """Labels (1, C, H, W) at the size of the padded image: test pipelines leave them at that of the file."""
    meta = sample.metainfo
    if 'img_shape' in meta and tuple(pixels.shape[-2:]) == tuple(meta.get('ori_shape', ())[:2]):
        pixels = F.interpolate(pixels, size=tuple(meta['img_shape'][:2]), mode='nearest')
    return F.pad(pixels, (0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2]), value=fill)


def routing_overlap(model: nn.Module, other: nn.Module, batches: Iterable[dict[str, Any]]) -> dict[int, float]:
    """How far two models with the same schedule keep the same tokens.

    Args:
        model, other: models of mmseg or mmdet with a CroprViT, in evaluation mode.
        batches: a data loader; both get the same images, each through its own data preprocessor.

    Returns:
        Block with a pruner after it → share of the tokens kept there by the one that the other keeps, too, 0 to 1.

    Raises:
        ValueError: other schedules or grids, or no batch.
    """
    blocks = _blocks_with_pruners(model)
    both = dict.fromkeys(blocks, 0)
    kept = dict.fromkeys(blocks, 0)
    for batch in batches:
        exits, others = (predict_with_routing(m, copy.deepcopy(batch))[1] for m in (model, other))
        if exits.shape != others.shape or blocks != _blocks_with_pruners(other):
            raise ValueError(
                f'the models prune after blocks {blocks} of a grid {tuple(exits.shape[1:])} and after '
                f'{_blocks_with_pruners(other)} of {tuple(others.shape[1:])}; the same are expected'
            )
        for block in blocks:
            mine, theirs = ((m == KEPT) | (m > block) for m in (exits, others))
            both[block] += int((mine & theirs).sum())
            kept[block] += int(mine.sum())
    if not kept or not all(kept.values()):
        raise ValueError('no pruner removes a token, or the data loader gave no batch')
    return {block: both[block] / kept[block] for block in blocks}


def _blocks_with_pruners(model: nn.Module) -> list[int]:
    schedule = find_backbone(model).schedule
    return [] if schedule is None else list(schedule.blocks)
