"""The models of a report, side by side: loaded, with other reducers, with none; and how fast each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from ..benchmark.flops import pruned_ratio
from ..benchmark.throughput import Timing, compare_throughput
from ..benchmark.variants import TRAINING_FREE, pruning_of
from ..cli.evaluation import timed_images
from ..cli.inputs import check_data, items_of_files
from ..cli.model import load_model
from ..models.cropr_vit import Reduction, find_backbone
from .trace import ImageTrace, trace_image


@dataclass(frozen=True)
class Contender:
    """A model, and how it reduces its tokens.

    Attributes:
        name: short, different from that of all others.
        about: where it comes from, in words.
        model: for inference; contenders with the same weights share it.
        items: the images, as the model's own pipeline gives them.
        reduction: of the tokens; None: every token goes through every block.
        meta: ``classes`` and ``palette``, where they are known.
    """

    name: str
    about: str
    model: nn.Module
    items: Sequence[dict[str, Any]]
    reduction: Reduction | None
    meta: Mapping[str, Any]

    @property
    def depth(self) -> int:
        return find_backbone(self.model).depth

    @property
    def fusion(self) -> bool:
        """Whether every token goes through the last block."""
        return self.reduction is not None and self.reduction.schedule.fusion == 'last_layer'

    def set_up(self) -> nn.Module:
        """The model, reducing its tokens as this contender does."""
        find_backbone(self.model).reduction = self.reduction
        return self.model

    def trace(self, index: int, before: bool = False) -> ImageTrace:
        """See :func:`~cropr_mm.report.trace.trace_image`."""
        return trace_image(self.set_up(), self.items[index], index, before)


def load_contender(cfg: Config, checkpoint: str, name: str, files: Sequence[str] = ()) -> Contender:
    """Load a model of a config, with its test set, or with image files in place of it.

    Raises:
        FileNotFoundError, ValueError: as by :func:`~cropr_mm.cli.model.load_model`, or a model without a CroprViT.
    """
    items: Any
    if not files:
        check_data(cfg, ['test_dataloader'])
    model = load_model(cfg, checkpoint)
    backbone = find_backbone(model)
    meta = getattr(model, 'dataset_meta', None) or {}
    if files:
        items = items_of_files(cfg, files)
    else:
        items = DATASETS.build(cfg.test_dataloader.dataset)
        meta = {**meta, **items.metainfo}
    pruner = ((cfg.model.backbone.get('pruning') or {}).get('pruner') or {}).get('type', 'no reducer')
    about = f'{Path(checkpoint).parent.name}/{Path(checkpoint).name}, {pruner}'
    return Contender(name, about, model, items, backbone.reduction, meta)


def without_reduction(contender: Contender) -> Contender:
    """The same weights, every token through every block."""
    return replace(contender, name='dense', about='weights of the first model, no token leaves', reduction=None)


def with_reducer(contender: Contender, name: str, pruning: Mapping[str, Any] | None, rate: float) -> Contender:
    """The same weights with a reducer that needs no training.

    Args:
        contender: whose weights are taken.
        name: of :data:`~cropr_mm.benchmark.variants.TRAINING_FREE`.
        pruning: of the config; its schedule is kept.
        rate: share of the patch tokens that leave, where there is no schedule.

    Raises:
        ValueError: an unknown name, or a reducer that does not fit the model.
    """
    if name not in TRAINING_FREE:
        raise ValueError(f'--reducer {name}; valid are {", ".join(TRAINING_FREE)}')
    plan = {k: v for k, v in (pruning or dict(target_ratio=rate)).items() if k in ('pruner', *_KEPT_SETTINGS)}
    settings = pruning_of(name, plan, len(contender.meta.get('classes') or ()))
    assert settings is not None
    reduction = find_backbone(contender.model).build_reduction(settings)
    return replace(
        contender,
        name=name,
        about=f'weights of the dense model, {settings["pruner"]["type"]}',
        reduction=reduction,
    )


_KEPT_SETTINGS = ('rate', 'target_ratio', 'keep', 'blocks', 'round_to', 'fusion')


def time_contenders(contenders: Sequence[Contender], batch_size: int, rounds: int) -> list[tuple[Timing, float]]:
    """Time all of them in turn, on the first image, ``batch_size`` times.

    Returns:
        For each: its timing, and the share of all tokens that leave.
    """
    batches = [timed_images(one.items, one.model, batch_size) for one in contenders]

    def predict(contender: Contender, batch: dict[str, Any]) -> None:
        contender.set_up()(**batch, mode='predict')

    calls = {str(i): partial(predict, *pair) for i, pair in enumerate(zip(contenders, batches))}
    timings = compare_throughput(calls, batch_size, rounds)
    pruned = [
        pruned_ratio(find_backbone(one.set_up()), *batch['inputs'].shape[-2:])
        for one, batch in zip(contenders, batches)
    ]
    return list(zip(timings.values(), pruned))
