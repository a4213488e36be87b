"""A dense model teaches the same model with fewer tokens; labels play no part."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from ..checkpoint import load_every_parameter, read_checkpoint
from ..models.cropr_vit import find_backbone
from ..tokens import SparseFeature
from .retrofit import evaluate_all_but_pruners


@MODELS.register_module()
class Distilled(BaseModel):
    """A model that learns to give with fewer tokens what it gives with all of them.

    The student begins with the weights of the teacher, which is the same model with ``pruning=None`` and stays as it
    is. What is compared is what the heads read, after the neck, and where one head makes a tensor of logits from it
    (segmentors, classifiers), those, too. Nothing reads the labels: data samples reach neither model.

    Dropout and stochastic depth are off and statistics fixed, as in a retrofit. Pruners that learn have their auxiliary
    losses by what the teacher predicts, in segmentors; elsewhere reducers without parameters are expected.

    Args:
        student: config of the model, its backbone a CroprViT with ``pruning``.
        checkpoint: of the dense model; it may have pruners besides. Loaded by :meth:`init_weights`.
        features: weight of the loss of the maps: of each level, the squared error as a share of the variance of the
            teacher's map.
        logits: weight of the KL divergence of the student's from the teacher's classes, mean over the positions.
        data_preprocessor: None, as the student has its own.

    Raises:
        ValueError: a model without a CroprViT or without ``pruning``, or with pruners that have nothing to learn from.
    """

    def __init__(
        self,
        student: Mapping[str, Any],
        checkpoint: str,
        features: float = 1.0,
        logits: float = 1.0,
        data_preprocessor: Any = None,
    ) -> None:
        backbone = student.get('backbone') or {}
        if not backbone.get('pruning'):
            raise ValueError(
                f'Distilled.student.backbone.pruning={backbone.get("pruning")!r}; the pruning that the student shall '
                'have is expected'
            )
        built = MODELS.build(student)
        super().__init__(built.data_preprocessor)
        self.student = built
        self.teacher = MODELS.build({**student, 'backbone': {**backbone, 'pruning': None}})
        self.teacher.requires_grad_(False)
        self.checkpoint = checkpoint
        self.weights = dict(features=features, logits=logits)
        self.learns = any(pruner.learns for pruner in find_backbone(built).pruners.values())
        if self.learns and find_head(built, ['decode_head']) is None:
            raise ValueError(
                f'Distilled.student: the pruners learn from labels, and a {type(built).__name__} has no decode_head '
                'whose predictions could take their place; a reducer without parameters is expected'
            )
        find_backbone(built).aux_is_read = True
        _ignore_labels(self.data_preprocessor)

    def init_weights(self) -> None:
        """Load the checkpoint into both."""
        weights, _ = read_checkpoint(self.checkpoint)
        load_every_parameter(self.teacher, weights, self.checkpoint)
        for name, value in self.student.state_dict().items():
            if name not in self.teacher.state_dict():  # pruners that the checkpoint has not begin as they are
                weights.setdefault(name, value)
        load_every_parameter(self.student, weights, self.checkpoint)
        self._is_init = True

    def train(self, mode: bool = True) -> Distilled:
        super().train(mode)
        self.teacher.eval()
        if mode:
            evaluate_all_but_pruners(self.student)
        return self

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        samples = [type(sample)(metainfo=sample.metainfo) for sample in data['data_samples']]
        return super().train_step(dict(inputs=data['inputs'], data_samples=samples), optim_wrapper)

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """The losses of a training step, or in any other mode what the student gives."""
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        with torch.no_grad():
            goal = self.teacher.extract_feat(inputs)
        maps = self.student.extract_feat(inputs)
        parts = [unexplained(own, other) for own, other in zip(_maps(maps), _maps(goal))]
        losses = dict(loss_features=self.weights['features'] * torch.stack(parts).mean())
        head, teaching_head = find_head(self.student), find_head(self.teacher)
        if head is None or teaching_head is None:
            return losses
        with torch.no_grad():
            wanted = teaching_head(goal)
        if isinstance(wanted, Tensor):
            losses['loss_logits'] = self.weights['logits'] * divergence(head(maps), wanted)
        if self.learns:
            losses.update(self._aux_losses(wanted, inputs.shape[-2:]))
        return losses

    def _aux_losses(self, logits: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """What pruners learn by the classes that the teacher predicts."""
        scores = F.interpolate(logits.float(), tuple(size), mode='bilinear', align_corners=False)
        samples = [BaseDataElement(gt_sem_seg=PixelData(data=label)) for label in scores.argmax(1, keepdim=True)]
        losses = find_backbone(self.student).aux_losses(samples)
        return {f'cropr.{name}': value for name, value in losses.items()}


def find_head(model: nn.Module, names: Sequence[str] = ('decode_head', 'head')) -> nn.Module | None:
    """The head that turns maps into logits by itself, of a segmentor or classifier; None where there is none."""
    for name in names:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module) and not isinstance(head, nn.ModuleList):
            needed = [p for p in inspect.signature(head.forward).parameters.values() if p.default is p.empty]
            if len(needed) == 1:
                return head
    return None


def unexplained(own: Tensor, goal: Tensor) -> Tensor:
    """Squared error as a share of the variance of the goal: 0 where they are the same, 1 for a map of its mean."""
    own, goal = own.float(), goal.float()
    return (own - goal).square().mean() / goal.var(unbiased=False).clamp(min=1e-12)


def divergence(logits: Tensor, goal: Tensor) -> Tensor:
    """KL divergence of classes (B, C, …) from the goal's, mean over all else."""
    own, wanted, shares = logits.float().log_softmax(1), goal.float().log_softmax(1), goal.float().softmax(1)
    return (shares * (wanted - own)).sum(1).mean()


def _maps(features: Any) -> list[Tensor]:
    levels = features if isinstance(features, (list, tuple)) else [features]
    return [level.to_dense() if isinstance(level, SparseFeature) else level for level in levels]


def _ignore_labels(preprocessor: nn.Module) -> None:
    """Let a data preprocessor pad and mix no labels in training."""
    for name, off in (('pad_mask', False), ('pad_seg', False), ('batch_augments', None)):
        if hasattr(preprocessor, name):
            setattr(preprocessor, name, off)
