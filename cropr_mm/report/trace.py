"""What one model did with one image: when each token left, where to, with which scores, and what was predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ..analysis.pictures import labels_of
from ..analysis.routing import KEPT, Routed, predict_with_routing
from ..models import BasePruner, CroprViT
from ..models.cropr_vit import find_backbone
from ..tokens import Removed, Tokens, restore

NOBODY = -1
"""In a map of owners: the token merged into none."""


class Step(NamedTuple):
    """What one reducer did in one forward pass.

    Attributes:
        block: the one that it stands after.
        position: (B, M) of the patch tokens that it got.
        removed: what left, and how it comes back.
        scores: (B, M) of those tokens, of a pruner; None: a reducer that does not score.
    """

    block: int
    position: Tensor
    removed: list[Removed]
    scores: Tensor | None


@contextmanager
def record_steps(backbone: CroprViT) -> Iterator[list[list[Step]]]:
    """Record what the reducers of a backbone do inside the ``with``: one list for each forward pass."""
    passes: list[list[Step]] = []
    scored: dict[int, Tensor] = {}

    def begin(*_: Any) -> None:
        passes.append([])

    def end_of(block: int) -> Any:
        def note(reducer: nn.Module, inputs: tuple[Any, ...], result: tuple[Tokens, list[Removed]]) -> None:
            passes[-1].append(Step(block, inputs[0].position, result[1], scored.pop(block, None)))

        return note

    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(begin).remove)
        for block, reducer in backbone.pruners.items():
            stack.callback(reducer.register_forward_hook(end_of(int(block))).remove)
            if isinstance(reducer, BasePruner):
                stack.enter_context(_listen(reducer, int(block), scored))
        yield passes


@contextmanager
def _listen(pruner: BasePruner, block: int, scored: dict[int, Tensor]) -> Iterator[None]:
    """Keep the scores that a pruner gives, until they are taken."""
    score, own = pruner.score, vars(pruner).get('score')

    def listening(*inputs: Any) -> Tensor:
        scored[block] = score(*inputs)
        return scored[block]

    pruner.score = listening  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del pruner.score
        if own is not None:
            pruner.score = own  # type: ignore[method-assign]


@dataclass(frozen=True, eq=False)
class TokenTrace:
    """What happened to each of the N patch tokens of an image.

    Attributes:
        left: (N,) int64, the block after which each left, or ``KEPT``.
        owner: (N,) int64, the position of the token that each merged into as it left, or ``NOBODY``. Of several owners
            the one with the largest weight.
        scores: block → (N,) float32, NaN where the token had left before; blocks with a pruner alone.
    """

    left: Tensor
    owner: Tensor
    scores: dict[int, Tensor]


def trace_tokens(steps: Sequence[Step], sample: int, count: int) -> TokenTrace:
    """Follow the ``count`` tokens of one sample of a forward pass."""
    left, owner = torch.full((count,), KEPT), torch.full((count,), NOBODY)
    scores: dict[int, Tensor] = {}
    for step in steps:
        if step.scores is not None:
            own = torch.full((count,), torch.nan)
            scores[step.block] = own.scatter(0, step.position[sample].cpu(), step.scores[sample].float().cpu())
        for part in step.removed:
            position = part.position[sample].cpu()
            left[position] = step.block
            if part.owner is not None:
                into = part.owner[sample].cpu()
                if part.weight is not None:
                    into = into.gather(1, part.weight[sample].cpu().argmax(dim=1, keepdim=True))[:, 0]
                owner[position] = into
    return TokenTrace(left, owner, scores)


def join_windows(traces: Sequence[TokenTrace], routed: Routed, sample: int) -> TokenTrace:
    """One trace of the whole image from those of its sliding windows: of each token that of the window in which it went
    deepest (:meth:`~cropr_mm.analysis.routing.Routed.deepest`)."""
    window, place = (part[sample] for part in routed.deepest_windows())
    height, width = routed.grid()
    left, owner = torch.full_like(window, KEPT), torch.full_like(window, NOBODY)
    scores: dict[int, Tensor] = {}
    for i, (trace, exits, (top, first)) in enumerate(zip(traces, routed.exits, routed.corners())):
        here, columns = window == i, exits.shape[2]
        at = place[here]
        left[here] = trace.left[at]
        own = trace.owner[at]
        row, column = own // columns + top, own % columns + first
        inside = (own != NOBODY) & (row < height) & (column < width)
        owner[here] = torch.where(inside, row * width + column, torch.full_like(own, NOBODY))
        for block, values in trace.scores.items():
            scores.setdefault(block, torch.full(window.shape, torch.nan))[here] = values[at]
    return TokenTrace(left, owner, scores)


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """What one model did with one image.

    Attributes:
        image: (H, W, 3) uint8 RGB, as the model saw it, without padding.
        grid: (h, w), patches of the image with padding.
        patch_size: pixels per patch side.
        tokens: what happened to each.
        entered: mean over the sliding windows of the share of the patch tokens that each block worked on.
        prediction, truth: see :func:`~cropr_mm.analysis.pictures.labels_of`.
        before: what the head predicts without the last block, in which tokens that left attend once more; None where
            they do not.
        name: of the image file; None where the data sample names none.
    """

    image: np.ndarray
    grid: tuple[int, int]
    patch_size: int
    tokens: TokenTrace
    entered: np.ndarray
    prediction: dict[str, Any] | None
    truth: dict[str, Any] | None
    before: dict[str, Any] | None = None
    name: str | None = None


def trace_image(model: nn.Module, item: dict[str, Any], seed: int = 0, before: bool = False) -> ImageTrace:
    """Run one image through a model and note what happens.

    Args:
        model: of mmseg, mmdet or mmpretrain with a CroprViT, in evaluation mode.
        item: of a data set: ``inputs`` and ``data_samples``.
        seed: of pruners that draw.
        before: whether to predict without the last block as well.
    """
    backbone = find_backbone(model)
    batch = pseudo_collate([item])
    torch.manual_seed(seed)
    with record_steps(backbone) as passes:
        routed = predict_with_routing(model, batch)
    traces = [trace_tokens(steps, 0, exits[0].numel()) for steps, exits in zip(passes, routed.exits)]
    sample = routed.samples[0]
    height, width = sample.img_shape[:2] if 'img_shape' in sample else item['inputs'].shape[-2:]
    shape = (int(height), int(width))
    prediction = labels_of(routed.predictions[0], 'pred', shape)  # before the next one, which overwrites it
    again = None
    if before and _returns_late(backbone):
        torch.manual_seed(seed)
        with without_fusion(backbone):
            again = labels_of(predict_with_routing(model, batch).predictions[0], 'pred', shape)
    return ImageTrace(
        image_of(item, shape),
        routed.grid(),
        backbone.patch_size,
        join_windows(traces, routed, 0),
        entered(routed.exits, backbone),
        prediction,
        labels_of(sample, 'gt', shape),
        again,
        _file_name(sample.metainfo.get('img_path')),
    )


def _file_name(path: str | None) -> str | None:
    return path.replace('\\', '/').rsplit('/', 1)[-1] if path else None


def entered(exits: Sequence[Tensor], backbone: CroprViT) -> np.ndarray:
    """Share of the patch tokens that each block works on, (depth,), from maps of exits; the mean of the maps."""
    shares = []
    for block in range(backbone.depth):
        returned = backbone.fusion and block == backbone.depth - 1
        there = [1.0 if returned else float(((e == KEPT) | (e >= block)).double().mean()) for e in exits]
        shares.append(sum(there) / len(there))
    return np.array(shares)


def image_of(item: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """The image of an item of a data set in RGB; mmcv loads them as BGR."""
    pixels = item['inputs'][:, : shape[0], : shape[1]].clamp(0, 255).byte().numpy()
    return np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0))


def _returns_late(backbone: CroprViT) -> bool:
    return backbone.fusion or (backbone.schedule is not None and backbone.late_return is not None)


@contextmanager
def without_fusion(backbone: CroprViT) -> Iterator[None]:
    """Let tokens that left return as they are: without the last block, or without a late return's cross-attention."""
    block, late = backbone.blocks[-1], backbone.late_return
    if late is None:
        backbone.blocks[-1] = _Nothing()
    else:
        backbone.late_return = _PlainReturn()  # type: ignore[assignment]
    try:
        yield
    finally:
        backbone.blocks[-1], backbone.late_return = block, late


class _Nothing(nn.Module):
    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


class _PlainReturn(nn.Module):
    def forward(self, tokens: Tokens, removed: Sequence[Removed], order: Tensor) -> Tokens:
        return restore(tokens, removed, order) if removed else tokens
