"""After which block each token was pruned."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        backbone: the CroprViT that made the passes.
    """

    predictions: Any
    samples: list[Any]
    size: tuple[int, int]
    windows: list[Window]
    exits: list[Tensor]
    backbone: CroprViT

    def deepest(self) -> Tensor:
        """One map of exits (B, H, W): of several windows with the same patch, the one in which it went deepest.

        Windows that begin inside a patch are moved to the nearest one.
        """
        window, place = self.deepest_windows()
        exits = torch.full_like(window, KEPT - 1)
        for i, own in enumerate(self.exits):
            exits = torch.where(window == i, own.flatten(1).gather(1, place.clamp(max=own[0].numel() - 1)), exits)
        return exits.unflatten(1, self.grid())

    def grid(self) -> tuple[int, int]:
        """(H, W) of the whole batch, in patches."""
        height, width = (-(-side // self.backbone.patch_size) for side in self.size)
        return height, width

    def corners(self) -> list[tuple[int, int]]:
        """Row and column of the patch at the top left of each window."""
        patch_size = self.backbone.patch_size
        return [(round(rows.start / patch_size), round(columns.start / patch_size)) for rows, columns in self.windows]

    def deepest_windows(self) -> tuple[Tensor, Tensor]:
        """Of each position, the window in which it went deepest (-1: none), and its position there: (B, H * W) each."""
        depth = torch.full((len(self.exits[0]), *self.grid()), KEPT - 1)
        window, place = torch.full_like(depth, -1), torch.zeros_like(depth)
        for i, ((top, left), exits) in enumerate(zip(self.corners(), self.exits)):
            own = torch.arange(exits[0].numel()).view(exits.shape[1:]).expand_as(exits)
            part = (..., slice(top, top + exits.shape[1]), slice(left, left + exits.shape[2]))
            height, width = depth[part].shape[1:]
            exits, own = exits[:, :height, :width], own[:, :height, :width]
            later = (exits == KEPT) | ((depth[part] != KEPT) & (exits > depth[part]))
            depth[part], place[part] = torch.where(later, exits, depth[part]), torch.where(later, own, place[part])
            window[part] = window[part].masked_fill(later, i)
        return window.flatten(1), place.flatten(1)


class Recording:
    """What the backbones of a model did in one prediction, from which :meth:`routed` makes maps of exits."""

    def __init__(self, model: nn.Module, routings: dict[CroprViT, Routing]) -> None:
        self._model = model
        self._routings = routings
        self.shape: tuple[int, ...] | None = None  # of the images, (B, 3, H, W)

    def routed(self, predictions: Any, samples: list[Any]) -> Routed | None:
        """Maps of exits of the prediction; None where the backbone saw no batch of images, or more than one.

        Args:
            predictions: what the model returned.
            samples: data samples of the images.
        """
        backbone, routing = next(((b, r) for b, r in self._routings.items() if r.passes), (None, None))
        if backbone is None or routing is None or self.shape is None:
            return None
        batch, height, width = self.shape[0], *self.shape[-2:]
        windows = prediction_windows(self._model, (height, width))
        if len(routing.passes) != len(windows):
            return None
        grids = [backbone.grid_of(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows]
        exits = [routing.exits(batch, grid, i) for i, grid in enumerate(grids)]
        return Routed(predictions, samples, (height, width), windows, exits, backbone)


@contextmanager
def record_prediction(model: nn.Module) -> Iterator[Recording]:
    """Record the exits in the one prediction inside the ``with``; it computes what it computes without.

    Args:
        model: of mmseg or mmdet, unwrapped; of several CroprViTs in it, the first that predicts counts.
    """

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = inspect.signature(module.forward).bind(*args, **kwargs).arguments.get('inputs')
        recording.shape = tuple(images.shape) if isinstance(images, Tensor) else None

    with ExitStack() as stack:
        backbones = [module for module in model.modules() if isinstance(module, CroprViT)]
        recording = Recording(model, {b: stack.enter_context(record_routing(b)) for b in backbones})
        handle = model.register_forward_pre_hook(begin, with_kwargs=True)
        stack.callback(handle.remove)
        yield recording


def predict_with_routing(model: Any, batch: dict[str, Any]) -> Routed:
    """Run one batch of a data loader through a model of mmseg or mmdet.

    Raises:
        ValueError: the model has no CroprViT, or its backbone saw no batch of images, or more than one.
    """
    find_backbone(model)
    device = next(model.parameters()).device
    model.data_preprocessor.to(device)
    with torch.no_grad(), record_prediction(model) as recording:
        data = model.data_preprocessor(batch, False)
        samples = [sample.clone() for sample in data['data_samples']]
        predictions = model(**data, mode='predict')
    routed = recording.routed(predictions, samples)
    if routed is None:
        raise ValueError(f'{type(model).__name__}: its backbone saw no batch of images, or more than one')
    return routed


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
    depth = find_backbone(model).depth
    groups = torch.zeros(2, depth + 1, dtype=torch.float64)
    names = [*classes, 'background']
    of_classes = torch.zeros(len(names), depth + 1, dtype=torch.float64)
    count, fusion = 0, False
    for batch in batches:
        routed = predict_with_routing(model, batch)
        patch_size, fusion = routed.backbone.patch_size, routed.backbone.fusion
        objects = torch.stack([object_pixels(s, routed.size, object_classes).cpu() for s in routed.samples])
        for window, exits in zip(routed.windows, routed.exits):
            on_object = in_patches(objects[(..., *window)], patch_size).flatten() >= 0.5
            groups += _count(exits.flatten(), torch.stack([on_object, ~on_object], dim=1).double(), depth)
        if classes:
            of_classes += exits_of_classes(routed, len(classes))
        count += len(routed.samples)
    if not count:
        raise ValueError('the data loader gave no batch')
    shares = _reached(groups, fusion).tolist()
    tokens = of_classes.sum(dim=1).tolist()
    reached = _reached(of_classes, fusion).tolist()
    return dict(
        object=shares[0],
        background=shares[1],
        object_tokens=int(groups[0].sum()),
        background_tokens=int(groups[1].sum()),
        images=count,
        classes={name: row for name, row, total in zip(names, reached, tokens) if total > 0},
        class_tokens={name: total for name, total in zip(names, tokens) if total > 0},
    )


def exits_of_classes(routed: Routed, num_classes: int) -> Tensor:
    """How many patches of each class were pruned after each block.

    A patch counts for each class by the share of it that the class covers, and once for each window that it is in.

    Args:
        routed: with data samples that carry a label map, or instances with masks.
        num_classes: classes C.

    Returns:
        (C + 1, depth + 1) float64; the last row is what no instance covers, the last column what was never pruned.
    """
    patch_size, depth = routed.backbone.patch_size, routed.backbone.depth
    counts = torch.zeros(num_classes + 1, depth + 1, dtype=torch.float64)
    for i, sample in enumerate(routed.samples):
        pixels = _class_pixels(sample, routed.size, num_classes)
        for window, exits in zip(routed.windows, routed.exits):
            covered = _class_shares(pixels[(..., *window)], patch_size, num_classes)
            counts += _count(exits[i].flatten(), covered, depth)
    return counts


def exits_of_all(routed: Routed) -> Tensor:
    """How many patches were pruned after each block, per image and forward pass: (depth + 1,) float64.

    The last one is those never pruned.
    """
    exits = torch.cat([part.flatten(1) for part in routed.exits])  # windows have one size
    return _count(exits.flatten(), torch.full((exits.numel(), 1), 1.0, dtype=torch.float64), routed.backbone.depth)[
        0
    ] / len(exits)


def _count(exits: Tensor, weights: Tensor, depth: int) -> Tensor:
    """Sums (K, depth + 1) of weights (P, K) by the exits (P,) of their patches, ``KEPT`` last."""
    counts = weights.new_zeros(weights.shape[1], depth + 1)
    columns = torch.where(exits == KEPT, depth, exits).expand(len(counts), -1)
    return counts.scatter_add_(1, columns, weights.t())


def _reached(counts: Tensor, fusion: bool) -> Tensor:
    """Counts (K, depth + 1) by exit → share (K, depth) that reaches each block; with a fusion all reach the last."""
    left = counts.flip(1).cumsum(1).flip(1)
    shares = left[:, :-1] / left[:, :1].clamp(min=torch.finfo(left.dtype).tiny)
    if fusion:
        shares[:, -1] = (left[:, 0] > 0).to(shares)
    return shares


def has_pixel_labels(sample: Any) -> bool:
    """Whether a data sample says where classes are: by a label map, or by instances with masks."""
    return 'gt_sem_seg' in sample or instance_masks(sample) is not None


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
