"""After which block each token was pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import CroprViT
from ..models.cropr_vit import find_backbone
from ..models.pruning.oracle import at_batch_size, in_patches, instance_masks, object_pixels, whole_patches
from ..models.pruning.supervision.targets import class_shares, label_map
from ..utils.sliding import Window, prediction_windows

KEPT = -1
"""In a map of exits: the token was never pruned."""


@dataclass
class Routing:
    """Exits in the forward passes of a backbone.

    Attributes:
        passes: one per forward pass: block → positions (B, R) of the patch tokens pruned after it.
    """

    passes: list[dict[int, Tensor]] = field(default_factory=list)

    def exits(self, batch: int, grid: tuple[int, int], index: int = -1) -> Tensor:
        """Map of exits of one pass: (B, H, W) int64, the block after which each token was pruned, or ``KEPT``."""
        exits = torch.full((batch, grid[0] * grid[1]), KEPT)
        for block, positions in self.passes[index].items():
            exits.scatter_(1, positions.cpu(), block)
        return exits.unflatten(1, grid)


@contextmanager
def record_routing(backbone: CroprViT) -> Iterator[Routing]:
    """Record the exits of the forward passes inside the ``with``."""
    routing = Routing()

    def begin(*_: Any) -> None:
        routing.passes.append({})

    def listen(block: int, kept: Tensor, pruned: Tensor) -> None:
        routing.passes[-1][block] = pruned

    handle = backbone.register_forward_pre_hook(begin)
    backbone.prune_listeners.append(listen)
    try:
        yield routing
    finally:
        backbone.prune_listeners.remove(listen)
        handle.remove()


class Routed(NamedTuple):
    """What the model did with one batch.

    Attributes:
        predictions: the model's.
        samples: the data samples as the model got them.
        size: (H, W) of the batch.
        windows: what each forward pass of the backbone saw of it: all, or one of mmsegmentation's sliding windows.
        exits: of each pass, the map of exits (B, h, w).
    """

    predictions: Any
    samples: list[Any]
    size: tuple[int, int]
    windows: list[Window]
    exits: list[Tensor]

    def deepest(self, patch_size: int) -> Tensor:
        """One map of exits (B, H, W): of several windows with the same patch, the one in which it went deepest.

        Windows that begin inside a patch are moved to the nearest one.
        """
        window, place = self.deepest_windows(patch_size)
        exits = torch.full_like(window, KEPT - 1)
        for i, own in enumerate(self.exits):
            exits = torch.where(window == i, own.flatten(1).gather(1, place.clamp(max=own[0].numel() - 1)), exits)
        return exits.unflatten(1, self.grid(patch_size))

    def grid(self, patch_size: int) -> tuple[int, int]:
        """(H, W) of the whole batch, in patches."""
        height, width = (-(-side // patch_size) for side in self.size)
        return height, width

    def corners(self, patch_size: int) -> list[tuple[int, int]]:
        """Row and column of the patch at the top left of each window."""
        return [(round(rows.start / patch_size), round(columns.start / patch_size)) for rows, columns in self.windows]

    def deepest_windows(self, patch_size: int) -> tuple[Tensor, Tensor]:
        """Of each position, the window in which it went deepest (-1: none), and its position there: (B, H * W) each."""
        grid = self.grid(patch_size)
        depth = torch.full((len(self.samples), *grid), KEPT - 1)
        window, place = torch.full_like(depth, -1), torch.zeros_like(depth)
        for i, ((top, left), exits) in enumerate(zip(self.corners(patch_size), self.exits)):
            own = torch.arange(exits[0].numel()).view(exits.shape[1:]).expand_as(exits)
            part = (..., slice(top, top + exits.shape[1]), slice(left, left + exits.shape[2]))
            height, width = depth[part].shape[1:]
            exits, own = exits[:, :height, :width], own[:, :height, :width]
            later = (exits == KEPT) | ((depth[part] != KEPT) & (exits > depth[part]))
            depth[part], place[part] = torch.where(later, exits, depth[part]), torch.where(later, own, place[part])
            window[part] = window[part].masked_fill(later, i)
        return window.flatten(1), place.flatten(1)


def predict_with_routing(model: Any, batch: dict[str, Any]) -> Routed:
    """Run one batch of a data loader through a model of mmseg or mmdet."""
    backbone = find_backbone(model)
    device = next(model.parameters()).device
    model.data_preprocessor.to(device)
    with torch.no_grad(), record_routing(backbone) as routing:
        data = model.data_preprocessor(batch, False)
        samples = [sample.clone() for sample in data['data_samples']]
        predictions = model(**data, mode='predict')
    height, width = data['inputs'].shape[-2:]
    windows = prediction_windows(model, (height, width))
    grids = [backbone.grid_of(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows]
    exits = [routing.exits(len(samples), grid, i) for i, grid in enumerate(grids)]
    return Routed(predictions, samples, (height, width), windows, exits)


def routing_shares(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    object_classes: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Share of the tokens on objects, and of those on background, that reach each block; and of each class.

    A token is on an object where objects cover at least half of its patch. It counts for each class by the share
    of its patch that the class covers; what no instance covers counts for ``background``. Where sliding windows
    overlap, a patch counts once for each of them.

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
        routed = predict_with_routing(model, batch)
        samples, size = routed.samples, routed.size
        objects = torch.stack([object_pixels(s, size, object_classes).cpu() for s in samples])
        labels = [_class_pixels(s, size, len(classes)) for s in samples if classes]
        for window, exits in zip(routed.windows, routed.exits):
            exits = torch.where(exits == KEPT, depth, exits).flatten(1)
            there = torch.stack([exits >= block for block in range(depth)], dim=-1)  # (B, patches, blocks)
            if backbone.fusion:
                there[..., -1] = True
            share = in_patches(objects[(..., *window)], backbone.patch_size).flatten(1)
            for row, group in enumerate((share >= 0.5, share < 0.5)):
                total[row] += group.sum()
                reached[row] += there[group].sum(dim=0)
            for sample, pixels in enumerate(labels):
                covered = _class_shares(pixels[(..., *window)], backbone.patch_size, len(classes))
                class_total += covered.sum(dim=0)
                class_reached += torch.einsum('pc,pd->cd', covered, there[sample].to(covered))
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


def _class_pixels(sample: Any, size: tuple[int, int], num_classes: int) -> Tensor:
    """Label map (H, W) int64 in which C stands for padding and what has no label; of instances (C + 1, H, W) bool.

    Instances of several classes may lie over the same pixels. The last of their maps is no instance's.
    """
    masks = instance_masks(sample)
    if masks is not None:
        masks, labels = masks.cpu(), sample.gt_instances.labels.cpu()
        planes = torch.zeros(num_classes + 1, *masks.shape[-2:], dtype=torch.bool)
        for label in set(labels.tolist()):
            planes[label] = masks[labels == label].any(dim=0)
        planes[-1] = ~planes[:-1].any(dim=0)
        return at_batch_size(planes.float(), sample, size, 0).bool()
    label = label_map(sample, 'routing_shares').cpu().float()
    label = at_batch_size(label, sample, size, num_classes)[0].long()
    return torch.where((label < 0) | (label > num_classes), num_classes, label)


def _class_shares(pixels: Tensor, patch_size: int, num_classes: int) -> Tensor:
    """Share of each patch that each class covers, (N, C + 1) float64; the last column is no instance's."""
    if pixels.ndim == 3:
        return in_patches(pixels.float(), patch_size).flatten(1).t().double()
    label = whole_patches(pixels, patch_size, num_classes)
    return F.pad(class_shares(label, patch_size, num_classes, num_classes), (0, 1)).double()


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
        one, two = (predict_with_routing(m, copy.deepcopy(batch)) for m in (model, other))
        grids = [[tuple(exits.shape[1:]) for exits in routed.exits] for routed in (one, two)]
        if grids[0] != grids[1] or blocks != _blocks_with_pruners(other):
            raise ValueError(
                f'the models prune after blocks {blocks} of grids {grids[0]} and after {_blocks_with_pruners(other)} '
                f'of {grids[1]}; the same are expected'
            )
        for block in blocks:
            for exits in zip(one.exits, two.exits):
                mine, theirs = ((m == KEPT) | (m > block) for m in exits)
                both[block] += int((mine & theirs).sum())
                kept[block] += int(mine.sum())
    if not kept or not all(kept.values()):
        raise ValueError('no pruner removes a token, or the data loader gave no batch')
    return {block: both[block] / kept[block] for block in blocks}


def _blocks_with_pruners(model: nn.Module) -> list[int]:
    schedule = find_backbone(model).schedule
    return [] if schedule is None else list(schedule.blocks)
