"""A schedule for a speed: what blocks and pruners cost on this device, and the stages that reach a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models import Schedule
from ..models.cropr_vit import CroprViT, find_backbone
from ..models.pruning.schedule import evenly_spaced, most_pruners
from .measure import Setting, graphed, prediction
from .throughput import Timing, compare_throughput

LEAST = 0.1
"""Share of the patch tokens below which no plan goes."""

SHARES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of all tokens between which the cost of a block is taken to be straight."""

ONE_SHOT = (0.07, *SHARES[1:])
"""Shares of the patch tokens that are measured; rounding does not bring them below the least of :data:`SHARES`."""


@dataclass(frozen=True)
class Shape:
    """What token counts depend on, apart from the plan.

    Attributes:
        depth, prefix: blocks and prefix tokens of the model.
        grid: (H, W), the patch grid of the images.
        round_to, fusion: of its schedules.
    """

    depth: int
    grid: tuple[int, int]
    prefix: int = 0
    round_to: int = 8
    fusion: str | None = 'last_layer'

    @property
    def pruners(self) -> int:
        """How many blocks may have a pruner after them."""
        return most_pruners(self.depth, self.fusion)

    @property
    def patches(self) -> int:
        """Patch tokens."""
        return self.grid[0] * self.grid[1]

    def schedule(self, keep: Mapping[int, float]) -> Schedule:
        """A stepwise schedule."""
        return Schedule(self.depth, self.grid, keep=keep, round_to=self.round_to, fusion=self.fusion)

    def tokens(self, schedule: Schedule | None) -> list[int]:
        """Tokens of each block; None: of the dense model."""
        if schedule is None:
            return [self.patches + self.prefix] * self.depth
        return schedule.tokens_per_block(self.depth, self.grid, self.prefix, self.fusion == 'last_layer')


def shape_of(backbone: CroprViT, images: Tensor) -> Shape:
    """The shape of a pruned backbone for images (B, 3, H, W)."""
    own = backbone.schedule
    if own is None:
        raise ValueError('backbone.pruning is None: there are no pruners to plan with')
    height, width = (-(-side // backbone.patch_size) for side in images.shape[-2:])
    return Shape(backbone.depth, (height, width), backbone.num_prefix_tokens, own.round_to, own.fusion)


@dataclass(frozen=True)
class Costs:
    """Seconds of a model by its schedule: those of the dense one, less what blocks save, and what pruners take.

    Attributes:
        shape: of the model.
        dense: seconds of the dense model.
        saved: seconds that a block saves at each of :data:`SHARES` of the tokens.
        pruner: seconds of a pruner, and what they grow by with the share of tokens that it reads.
        misfit: the largest distance between a measured time and what these costs give, as a share of it.
    """

    shape: Shape
    dense: float
    saved: tuple[float, ...]
    pruner: tuple[float, float]
    misfit: float = 0.0

    def seconds(self, schedule: Schedule | None) -> float:
        """The time that a schedule is predicted to take; None: the dense model."""
        return float(_row(self.shape, schedule) @ np.array([self.dense, *self.saved, *self.pruner]))


def _row(shape: Shape, schedule: Schedule | None) -> np.ndarray:
    """Coefficients of ``dense``, ``saved`` and ``pruner``. Between two shares a block saves in proportion."""
    tokens = np.array(shape.tokens(schedule))
    shares = tokens / tokens.max()
    at = np.eye(len(SHARES) + 1)  # the last is all tokens, where nothing is saved
    saved = [-np.interp(shares, (*SHARES, 1.0), column).sum() for column in at[:-1]]
    read = shares[list(schedule.blocks)] if schedule else np.zeros(0)
    return np.array([1.0, *saved, len(read), read.sum()])


def measured_schedules(shape: Shape) -> list[Schedule]:
    """The schedules whose times tell the costs: one-shot after block 0, and a pruner after every block."""
    one_shot = [{0: share} for share in ONE_SHOT]
    steps = [(block, (block + 1) / shape.pruners) for block in range(shape.pruners)]
    stepwise = [{block: 1 - (1 - final) * step for block, step in steps} for final in (0.8, 0.5, 0.15)]
    return [shape.schedule(keep) for keep in (*one_shot, *stepwise)]


def time_schedules(
    dense: nn.Module, pruned: nn.Module, schedules: Sequence[Schedule], batch: Mapping[str, Any], setting: Setting
) -> list[Timing]:
    """Time the dense model, first, and the pruned one at each schedule, in turn.

    Args:
        dense: the model without pruning; on the device, in its dtype, in evaluation mode.
        pruned: the same with a pruner after every block that a schedule has one after.
        schedules: of the pruned model.
        batch: ``inputs`` and ``data_samples``, likewise.
        setting: how to run.
    """
    backbone = find_backbone(pruned)
    own = backbone.schedule
    predict, _ = prediction(pruned, batch, setting)

    def at(schedule: Schedule) -> Any:
        backbone.schedule = schedule
        return predict()

    calls: dict[str, Callable[[], Any]] = {'dense': prediction(dense, batch, setting)[0]}
    calls.update({str(i): partial(at, schedule) for i, schedule in enumerate(schedules)})
    try:
        if setting.cuda_graph:
            with torch.cuda.device(setting.device):
                calls = {name: graphed(call) for name, call in calls.items()}
        timings = compare_throughput(calls, len(batch['inputs']), setting.rounds, device=setting.device)
    finally:
        backbone.schedule = own
    return list(timings.values())


def measure_costs(dense: nn.Module, pruned: nn.Module, batch: Mapping[str, Any], setting: Setting) -> Costs:
    """Time a model at ten schedules, in turn, and work out what blocks and pruners cost.

    For the arguments see :func:`time_schedules`; ``pruned`` has a pruner after every block that may have one.
    """
    shape = shape_of(find_backbone(pruned), batch['inputs'])
    schedules = measured_schedules(shape)
    timings = time_schedules(dense, pruned, schedules, batch, setting)
    return solve_costs(shape, schedules, [timing.milliseconds / 1000 for timing in timings])


def solve_costs(shape: Shape, schedules: Sequence[Schedule], seconds: Sequence[float]) -> Costs:
    """The costs that explain measured times best, errors counted as shares of each time.

    Fewer tokens never cost more, and pruners never less than nothing.

    Args:
        shape: of the model.
        schedules: that were timed.
        seconds: of the dense model, and of each schedule.
    """
    from scipy.optimize import nnls

    rows = np.stack([_row(shape, schedule) for schedule in (None, *schedules)]) / np.array(seconds)[:, None]
    more = rows[:, 1:-2].cumsum(1)  # what a block saves more than at the next share
    solved, _ = nnls(np.hstack([rows[:, :1], more, rows[:, -2:]]), np.ones(len(rows)))
    saved = solved[-3:0:-1].cumsum()[::-1]
    misfit = abs(rows @ np.array([solved[0], *saved, *solved[-2:]]) - 1).max()
    return Costs(shape, float(solved[0]), tuple(saved.tolist()), tuple(solved[-2:].tolist()), float(misfit))


@dataclass(frozen=True)
class Plan:
    """A schedule that is predicted to reach a time.

    Attributes:
        keep: the setting ``pruning.keep``.
        tokens: of each block.
        seconds: predicted.
        kept: tokens after the last pruner, prefix included.
    """

    keep: dict[int, float]
    tokens: list[int]
    seconds: float
    kept: int


def stages_of(shape: Shape) -> dict[int, list[int]]:
    """For each number of stages that fits, the blocks that evenly spaced pruners stand after."""
    placed = {stages: evenly_spaced(shape.depth, stages) for stages in range(1, shape.pruners + 1)}
    return {stages: blocks for stages, blocks in placed.items() if blocks[0] >= 0 and blocks[-1] < shape.pruners}


def plan_at(costs: Costs, blocks: Sequence[int], final: float) -> Plan:
    """The plan that keeps the share ``final`` after the last of ``blocks``."""
    keep = {block: round(final ** (i / len(blocks)), 3) for i, block in enumerate(blocks, 1)}
    schedule = costs.shape.schedule(keep)
    tokens = costs.shape.tokens(schedule)
    return Plan(keep, tokens, costs.seconds(schedule), tokens[blocks[-1] + 1])


def plans_for(costs: Costs, seconds: float) -> dict[int, Plan]:
    """For each number of stages, the plan with the most tokens kept in the end that is predicted to be fast enough.

    Stages are evenly spaced, and each keeps the same share of what the one before it kept (as in EViT,
    arXiv 2202.07800). Numbers of stages that do not reach the time are left out.

    Args:
        costs: of the model.
        seconds: the time to reach.
    """
    plans = {stages: _most_kept(costs, blocks, seconds) for stages, blocks in stages_of(costs.shape).items()}
    return {stages: plan for stages, plan in plans.items() if plan}


def _most_kept(costs: Costs, blocks: Sequence[int], seconds: float) -> Plan | None:
    """Fewer tokens are faster, so the largest number that is fast enough is found by halving."""
    patches = costs.shape.patches
    low, high = math.ceil(LEAST * patches), patches  # of what is looked through, the end excluded
    best: Plan | None = None
    while low < high:
        middle = (low + high) // 2
        plan = plan_at(costs, blocks, middle / patches)
        if plan.seconds <= seconds:
            best, low = plan, middle + 1
        else:
            high = middle
    return best


def best_plan(plans: Mapping[int, Plan]) -> Plan:
    """Of the plans that keep the most tokens, or up to 5 % less, the one with the fewest stages."""
    most = max(plan.kept for plan in plans.values())
    return plans[min(stages for stages, plan in plans.items() if plan.kept >= 0.95 * most)]


def fastest_plan(costs: Costs) -> Plan:
    """Of the plans that keep the least, the fastest."""
    return min((plan_at(costs, b, LEAST) for b in stages_of(costs.shape).values()), key=lambda plan: plan.seconds)
