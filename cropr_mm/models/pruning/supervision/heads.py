"""Auxiliary heads: the task that teaches a pruner which tokens matter. They exist in training only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ....tokens import take_rows
from ....utils.checks import check_integer, check_number
from .targets import PIXELS, for_batch, image_class, image_classes, patch_classes, patch_labels, square_classes


class BaseAuxHead(nn.Module):
    """LayerNorm and a linear layer on the aggregated tokens (arXiv 2412.00965, section 3.2).

    Args:
        num_classes: classes C of the task.
        embed_dim: channels D of a token.
        num_queries: queries N that the pruner has for this head.
        ignore_index: label that counts for nothing.
    """

    def __init__(self, num_classes: int, embed_dim: int, num_queries: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = check_integer('aux_head.num_classes', num_classes)
        self.num_queries = num_queries
        self.ignore_index = ignore_index
        self.norm = nn.LayerNorm(embed_dim)  # eps 1e-5, as published
        self.fc = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, aggregated: Tensor) -> Tensor:
        """(B, N, D) → logits (B, N, C)."""
        return self.fc(self.norm(aggregated))

    def loss(self, logits: Tensor, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        """Auxiliary loss.

        Args:
            logits: (B, N, C).
            data_samples: the B data samples that mm's data set gave, as the main head gets them.
            grid: (H, W), the patch grid of these images.

        Returns:
            A scalar, mean over what has a label; 0 (with gradient 0) where nothing has one.
        """
        raise NotImplementedError


@MODELS.register_module()
class PatchSegAuxHead(BaseAuxHead):
    """The class of each patch, one query per patch of the training grid: cross-entropy (segmentation, as published).

    The target is one pixel of the label map for each patch. Images on another grid are read at the training grid's
    resolution.

    Args:
        num_classes: classes C.
        ignore_index: label that counts for nothing.
        query_stride: side, in patches, of the squares that share a query. Above 1 training costs less; the target of
            a query is then the share of each class in its square.
        balance: how much rare classes count. A patch of a class that has the share f of the batch weighs
            f^-balance: 0 weighs patches alike (as published), 1 classes.
        pixel: ``'centre'`` of the patch, or ``'corner'``, the one at its top left, as published.
        embed_dim, grid, patch_size: filled in by CroprViT.

    Raises:
        ValueError: ``query_stride`` is no positive integer, ``balance`` not in 0 to 1, or an unknown ``pixel``.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int,
        grid: tuple[int, int],
        patch_size: int,
        ignore_index: int = 255,
        query_stride: int = 1,
        balance: float = 0.0,
        pixel: str = 'centre',
    ) -> None:
        check_integer('aux_head.query_stride', query_stride)
        if pixel not in PIXELS:
            raise ValueError(f'aux_head.pixel={pixel!r}; one of {", ".join(PIXELS)} is expected')
        balance = float(check_number('aux_head.balance', balance, least=0, most=1))
        queries = (-(-grid[0] // query_stride), -(-grid[1] // query_stride))
        super().__init__(num_classes, embed_dim, queries[0] * queries[1], ignore_index)
        self.query_stride = query_stride
        self.balance = balance
        self.pixel = pixel
        self.grid = grid
        self.patch_size = patch_size

    def loss(self, logits: Tensor, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        where = (logits.device, grid, self.patch_size, self.grid)
        classes = (self.num_classes, self.ignore_index)
        if self.query_stride > 1:
            shares = for_batch(square_classes, data_samples, *where, self.query_stride, *classes)
            weighted = shares * self._weights(shares.sum(dim=(0, 1)))
            log_loss = -(weighted * logits.float().log_softmax(dim=-1)).sum()
            return log_loss / weighted.sum().clamp(min=torch.finfo(shares.dtype).tiny)
        target = for_batch(patch_labels, data_samples, *where, *classes, self.pixel).flatten()
        known = target != self.ignore_index
        label = torch.where(known, target, 0)
        weight = known.float()
        if self.balance:
            weight = weight * self._weights(weight.new_zeros(self.num_classes).scatter_add_(0, label, weight))[label]
        # Of rows, not of maps: that has a deterministic gradient on CUDA.
        log_loss = F.cross_entropy(logits.float().flatten(0, 1), label, reduction='none')
        return (weight * log_loss).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)

    def _weights(self, amount: Tensor) -> Tensor:
        """Weight of each class (C,) of which a batch has this much."""
        return (amount / amount.sum().clamp(min=1)).clamp(min=1e-6) ** -self.balance


@MODELS.register_module()
class MultiLabelAuxHead(BaseAuxHead):
    """Which classes are in the image, one query: sigmoid binary cross-entropy.

    The published proxy for detection; works on every task, since the classes come from the boxes, the label map
    or the image labels (with the shares that Mixup and CutMix gave them), whatever the data sample has.

    Args:
        num_classes: classes C.
        ignore_index: value of a label map that is no class.
        embed_dim, grid, patch_size: filled in by CroprViT.
    """

    def __init__(
        self, num_classes: int, embed_dim: int, grid: tuple[int, int], patch_size: int, ignore_index: int = 255
    ) -> None:
        super().__init__(num_classes, embed_dim, 1, ignore_index)

    def loss(self, logits: Tensor, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        settings = (logits.device, self.num_classes, self.ignore_index)
        target, weight = for_batch(image_classes, data_samples, *settings)
        total = F.binary_cross_entropy_with_logits(logits.float().squeeze(1), target, weight[:, None], reduction='sum')
        return total / (weight.sum().clamp(min=1) * self.num_classes)


@MODELS.register_module()
class ClsAuxHead(BaseAuxHead):
    """The class of the image, one query: softmax cross-entropy (image classification, as published).

    The target is what the main loss learns from: ``gt_score``, where mmpretrain's data preprocessor puts the labels
    that Mixup and CutMix have mixed, or else ``gt_label``.

    Args:
        num_classes: classes C.
        label_smoothing: share of each target that is spread evenly over all classes; the main loss's
            ``label_smooth_val`` (v / (1 + v) for its mode ``'classy_vision'``).
        ignore_index: value of ``gt_label`` that counts for nothing.
        embed_dim, grid, patch_size: filled in by CroprViT.

    Raises:
        ValueError: ``label_smoothing`` out of range.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int,
        grid: tuple[int, int],
        patch_size: int,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(num_classes, embed_dim, 1, ignore_index)
        self.label_smoothing = float(check_number('aux_head.label_smoothing', label_smoothing, least=0, below=1))

    def loss(self, logits: Tensor, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        target = for_batch(image_class, data_samples, logits.device, self.num_classes, self.ignore_index)
        settings: dict[str, Any] = dict(reduction='sum', label_smoothing=self.label_smoothing)
        if target.is_floating_point():  # shares of mixed images ignore nothing
            return F.cross_entropy(logits.float().squeeze(1), target, **settings) / len(target)
        total = F.cross_entropy(logits.float().squeeze(1), target, ignore_index=self.ignore_index, **settings)
        return total / (target != self.ignore_index).sum().clamp(min=1)


@dataclass(frozen=True)
class TokenPrediction:
    """What :class:`DifficultyPruner` predicts for N patch tokens.

    Attributes:
        scores: (B, N), the scorer's attention logits.
        logits: (B, N, C + 1), the class of each token; the last one is background.
        position: (B, N) int64.
    """

    scores: Tensor
    logits: Tensor
    position: Tensor


@MODELS.register_module()
class TokenClassAuxHead(BaseAuxHead):
    """What each patch token alone shows, and the attention that follows from where it does not yet show it.

    LayerNorm and a linear layer classify each token; cross-entropy with the share of each class in its patch. The
    scorer's attention ``softmax_m(q · x_m)`` over the tokens of an image is drawn to each token's share of that
    image's cross-entropy, ``c_m / Σ c`` (listwise cross-entropy, as ListNet ranks by; Cao et al., ICML 2007): tokens
    that one linear layer can name need no further blocks, the others do. Nothing of this reaches the backbone.

    Classes come from the label map, or from the boxes, with background as a class of its own.

    Args:
        num_classes: classes C.
        ignore_index: value of a label map that is no class. What has no label counts as not difficult.
        embed_dim, grid, patch_size: filled in by CroprViT.
    """

    def __init__(
        self, num_classes: int, embed_dim: int, grid: tuple[int, int], patch_size: int, ignore_index: int = 255
    ) -> None:
        super().__init__(num_classes, embed_dim, 1, ignore_index)
        self.fc = torch.nn.Linear(embed_dim, num_classes + 1)
        torch.nn.init.trunc_normal_(self.fc.weight, std=0.02)
        torch.nn.init.zeros_(self.fc.bias)
        self.patch_size = patch_size

    def loss(self, prediction: Any, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        """Cross-entropy of the tokens' classes, mean over what is labelled, plus that of the attention.

        Args:
            prediction: a :class:`TokenPrediction`.
            data_samples, grid: see :meth:`BaseAuxHead.loss`.
        """
        if not isinstance(prediction, TokenPrediction):
            raise TypeError("TokenClassAuxHead reads single tokens; set pruning.pruner.type='DifficultyPruner'")
        where = (prediction.logits.device, grid, self.patch_size)
        targets = for_batch(patch_classes, data_samples, *where, self.num_classes, self.ignore_index)
        shares = take_rows(targets, prediction.position)
        difficulty = -(shares * prediction.logits.float().log_softmax(dim=-1)).sum(dim=-1)
        attention = prediction.scores.float().log_softmax(dim=1)
        total = difficulty.detach().sum(dim=1, keepdim=True)
        share = difficulty.detach() / total.clamp(min=torch.finfo(total.dtype).tiny)
        followed = -(share * attention).sum() / (total > 0).sum().clamp(min=1)
        return difficulty.sum() / shares.sum().clamp(min=1) + followed
