"""A finished dense model made faster: which reducers may be tried, and which of them loses little."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..checkpoint.names import shorten
from ..checkpoint.pruners import block_of, key_pruners_by_block
from ..models import CroprViT
from ..models.cropr_vit import Reduction, find_backbone
from ..models.pruning.schedule import evenly_spaced
from ..utils.checks import check_integer
from .rates import RatePoint
from .variants import TRAINING_FREE

BUDGETS = (0.5, 1.0, 2.0)
"""Points of the metric that may be lost."""


@dataclass(frozen=True)
class Candidate:
    """A way to reduce the tokens of a finished model.

    Attributes:
        series: reducer and schedule, in words.
        rate: share of the patch tokens that leave in the end.
        pruning: of the backbone, for a config; None: the dense model.
        reduction: built for the model.
        checkpoint: file that has the weights.
    """

    series: str
    rate: float
    pruning: dict[str, Any] | None
    reduction: Reduction | None
    checkpoint: str


def list_candidates(
    backbone: CroprViT,
    reducers: Mapping[str, Mapping[str, Any]],
    rates: Sequence[float],
    stages: Iterable[int],
    settings: Mapping[str, Any],
    checkpoint: str,
    load: Callable[[Reduction], None] | None = None,
) -> tuple[list[Candidate], dict[str, str]]:
    """Build reducers for a model that stays as it is: after every block, and after a few evenly spaced ones.

    Of one series all candidates share their pruners.

    Args:
        backbone: of the model.
        reducers: name → ``pruning.pruner``, such as :data:`~cropr_mm.benchmark.variants.TRAINING_FREE`.
        rates: shares of all patch tokens (``target_ratio``).
        stages: numbers of evenly spaced reducers, one schedule each.
        settings: other keys of ``pruning``.
        checkpoint: file that has the weights.
        load: gives weights to reducers that have some.

    Returns:
        The candidates, and why which series is left out.

    Raises:
        ValueError: a number of stages out of range.
    """
    plans: dict[str, dict[str, Any]] = {'every block': {}}
    for number in stages:
        count = check_integer('--stages', number, most=backbone.depth - 1)
        plans[f'{count} stage{"s" * (count > 1)}'] = dict(blocks=evenly_spaced(backbone.depth, count))
    found: list[Candidate] = []
    skipped: dict[str, str] = {}
    for name, pruner in reducers.items():
        for words, plan in plans.items():
            series = f'{name}, {words}'
            pruning = {'pruner': dict(pruner), **settings, **plan}
            try:
                reductions = _reductions(backbone, pruning, rates, load)
            except ValueError as error:
                skipped[series] = str(error)
                continue
            for rate, reduction in reductions.items():
                found.append(Candidate(series, rate, {**pruning, 'target_ratio': rate}, reduction, checkpoint))
    return found, skipped


def _reductions(
    backbone: CroprViT, pruning: dict[str, Any], rates: Sequence[float], load: Callable[[Reduction], None] | None
) -> dict[float, Reduction]:
    """One for each rate, with the same pruners."""
    built = {rate: backbone.build_reduction({**pruning, 'target_ratio': rate}) for rate in rates}
    first = next(iter(built.values()))
    if load is not None:
        load(first)
    return {rate: first._replace(schedule=reduction.schedule) for rate, reduction in built.items()}


def choose_reducers(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The training-free reducers of these names; all of them for none.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in TRAINING_FREE]
    if unknown:
        raise ValueError(f'--reducers {" ".join(unknown)}: of {", ".join(TRAINING_FREE)} is expected')
    return {name: pruner for name, pruner in TRAINING_FREE.items() if name in names or not names}


class Retrofitted:
    """The pruners of a checkpoint that a retrofit made of a dense model.

    Args:
        weights, meta: of the checkpoint, as :func:`~cropr_mm.checkpoint.read_checkpoint` gives them.
        model: the dense one, with its weights.
        path: of the checkpoint, for messages.

    Attributes:
        pruner: its config.
        settings: other keys of ``pruning``: rounding and fusion, and the blocks that have a pruner.

    Raises:
        ValueError: a checkpoint without pruners or without its config, or weights that are not those of the model.
    """

    def __init__(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], model: nn.Module, path: str) -> None:
        prefix = f'{backbone_name(model)}pruners.'
        own = {name: value for name, value in weights.items() if name.startswith(prefix)}
        key_pruners_by_block(own, prefix)
        blocks = sorted({block for block in (block_of(name, prefix) for name in own) if block is not None})
        text = meta.get('cfg')
        if not blocks or not isinstance(text, str):
            raise ValueError(
                f'--retrofitted {path}: has no {"config" if blocks else "pruners"}; a checkpoint of a training with '
                'CroprHook(retrofit=True) is expected'
            )
        dense = model.state_dict()
        other = [
            name for name, value in dense.items() if name not in weights or not torch.equal(weights[name], value.cpu())
        ]
        if other:
            raise ValueError(
                f'--retrofitted {path}: other weights than in the dense checkpoint ({shorten(other, 3)}), so it is no '
                'retrofit of it; tools/sweep_rates.py shows such a checkpoint at several rates'
            )
        pruning = Config.fromstring(text, '.py').model.backbone.pruning.to_dict()
        self.pruner: dict[str, Any] = pruning['pruner']
        self.settings = {key: pruning[key] for key in ('round_to', 'fusion') if key in pruning}
        self.settings['blocks'] = blocks
        self._weights = {name[len(prefix) :]: value for name, value in own.items()}

    def load(self, reduction: Reduction) -> None:
        """Give new pruners their weights, and fold them as for deployment.

        Raises:
            ValueError: the checkpoint has none after one of the blocks.
        """
        absent = [block for block in reduction.schedule.blocks if block not in self.settings['blocks']]
        if absent:
            raise ValueError(f'the checkpoint has pruners after blocks {self.settings["blocks"]}, none after {absent}')
        reduction.pruners.load_state_dict(self._weights)
        for pruner in reduction.pruners.values():
            pruner.switch_to_deploy()


def backbone_name(model: nn.Module) -> str:
    """How the names of the weights of its CroprViT begin, such as ``'backbone.'``."""
    backbone = find_backbone(model)
    name = next(name for name, module in model.named_modules() if module is backbone)
    return f'{name}.' if name else ''


def points_lost(point: RatePoint, dense: RatePoint, metric: str) -> float:
    """Points, hundredths of the whole, that the metric is lower by than that of the dense model; below 0: higher.

    Evaluators give some metrics in points (mIoU, top-1) and average precision from 0 to 1.
    """
    unit = 100 if 'AP' in metric and dense.metrics[metric] <= 1 else 1
    return unit * (dense.metrics[metric] - point.metrics[metric])


def fastest_within(points: Sequence[RatePoint], dense: RatePoint, metric: str, budget: float) -> RatePoint | None:
    """The fastest of the points that lose at most ``budget`` points and are faster than the dense model, if any."""
    fit = [
        point
        for point in points
        if points_lost(point, dense, metric) <= budget and point.images_per_second > dense.images_per_second
    ]
    return max(fit, key=lambda point: point.images_per_second, default=None)
