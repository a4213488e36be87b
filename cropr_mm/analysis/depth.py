"""Does a model need its depth? What a linear classifier reads from the tokens after each block.

Where the last blocks tell no more than the first ones, it does not matter which tokens are kept, and no pruner can be
told from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.cropr_vit import find_backbone
from ..models.pruning.supervision.targets import patch_classes

_STEPS, _ROWS = 200, 2048  # of the classifier's training


def probe_depth(
    model: Any,
    train: Iterable[dict[str, Any]],
    test: Iterable[dict[str, Any]],
    object_classes: Sequence[int] = (),
    patches: int = 64,
) -> dict[str, list[float]]:
    """Accuracy of a linear classifier of single tokens, before the first block and after each one.

    The class of a patch is the one of most of its pixels; patches without such a class are left out. Nothing is
    pruned, and all classes of the test images weigh alike.

    Args:
        model: a segmentor of mmsegmentation with a CroprViT, in evaluation mode; its weights stay as they are.
        train, test: data loaders whose data samples carry label maps; the classifier learns from the first.
        object_classes: labels to report apart.
        patches: drawn at random from each image.

    Returns:
        ``all``, and with ``object_classes`` also ``object`` and ``background``: the mean accuracy over the classes, 0
        to 1, at each depth.

    Raises:
        ValueError: no labelled patch.
    """
    classes = model.decode_head.num_classes
    learned, learned_labels = _collect(model, train, classes, patches)
    tokens, labels = _collect(model, test, classes, patches)
    there = labels.unique()
    groups = {'all': there}
    if object_classes:
        is_object = torch.isin(there, torch.tensor(list(object_classes)))
        groups.update(object=there[is_object], background=there[~is_object])
    found: dict[str, list[float]] = {name: [] for name in groups}
    for x, y in zip(learned, tokens):
        right = _fit(x, learned_labels, classes)(y).argmax(-1) == labels
        of_class = {int(label): float(right[labels == label].float().mean()) for label in there}
        for name, members in groups.items():
            values = [of_class[int(label)] for label in members]
            found[name].append(sum(values) / len(values) if values else float('nan'))
    return found


def _collect(model: Any, batches: Iterable[dict[str, Any]], classes: int, patches: int) -> tuple[list[Tensor], Tensor]:
    """Tokens (N, D) at each depth, normalised, and their classes (N,)."""
    backbone = find_backbone(model)
    progress = backbone.pruning_progress
    seen: list[Tensor] = []
    depths: list[list[Tensor]] = [[] for _ in range(backbone.depth + 1)]
    labels: list[Tensor] = []

    def before(block: nn.Module, args: Any) -> None:
        seen[:] = [args[0]]

    def after(block: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)

    handles = [backbone.blocks[0].register_forward_pre_hook(before)]
    handles += [block.register_forward_hook(after) for block in backbone.blocks]
    backbone.pruning_progress = 0.0
    try:
        for batch in batches:
            with torch.no_grad():
                data = model.data_preprocessor(batch, False)
                backbone(data['inputs'])
            grid = backbone.grid_of(*data['inputs'].shape[-2:])
            for row, sample in enumerate(data['data_samples']):
                shares = patch_classes(sample, grid, backbone.patch_size, classes)[:, :classes].cpu()
                known = (shares.amax(dim=1) >= 0.5).nonzero().flatten()
                drawn = known[torch.randperm(len(known))[:patches]]
                labels.append(shares[drawn].argmax(dim=1))
                for depth, x in zip(depths, seen):
                    depth.append(x[row, backbone.num_prefix_tokens :][drawn.to(x.device)].float().cpu())
    finally:
        backbone.pruning_progress = progress
        for handle in handles:
            handle.remove()
    if not sum(map(len, labels)):
        raise ValueError('no patch of these images has a label')
    return [F.layer_norm(torch.cat(rows), rows[0].shape[-1:]) for rows in depths], torch.cat(labels)


def _fit(tokens: Tensor, labels: Tensor, classes: int) -> nn.Module:
    """A linear classifier of tokens, the classes balanced."""
    weight = torch.bincount(labels, minlength=classes).float().clamp(min=1).reciprocal()
    linear = nn.Linear(tokens.shape[-1], classes)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2)
    for _ in range(_STEPS):
        rows = torch.randint(len(tokens), (_ROWS,))
        optimizer.zero_grad()
        F.cross_entropy(linear(tokens[rows]), labels[rows], weight=weight).backward()
        optimizer.step()
    return linear
