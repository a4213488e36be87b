"""From the ``pruning`` dict of a config to a schedule, its selectors and what they learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...utils.checks import check_flag
from .base import BasePruner
from .schedule import Schedule
from .supervision.collector import Auxiliary

SCHEDULE_KEYS = ('rate', 'target_ratio', 'keep', 'blocks', 'round_to', 'fusion')
PRUNING_KEYS = ('pruner', *SCHEDULE_KEYS, 'aux_share', 'aux_recompute', 'deploy')


class PrunerList(nn.ModuleList):
    """The selectors of a model, one per module of the schedule.

    Its state dict tells which block each module sits behind, so that a checkpoint trained with one schedule serves
    another: the scorer behind block 2 stays the scorer behind block 2, whatever its running number.

    Args:
        pruners: one per module.
        blocks: the block in front of each.
    """

    blocks: Tensor

    def __init__(self, pruners: Sequence[BasePruner], blocks: Sequence[int]) -> None:
        super().__init__(pruners)
        # A dense model's state dict has nothing about pruning in it.
        self.register_buffer('blocks', torch.tensor(list(blocks), dtype=torch.long), persistent=len(blocks) > 0)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # torch would call the constructor without the blocks
            return PrunerList(cast('list[BasePruner]', list(self)[index]), self.blocks.tolist()[index])
        return super().__getitem__(index)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if len(self):
            theirs = state_dict.get(f'{prefix}blocks', self.blocks).tolist()
            state_dict[f'{prefix}blocks'] = self.blocks.detach().clone()
            if theirs != self.blocks.tolist():
                self._renumber(state_dict, prefix, theirs)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _renumber(self, state_dict: dict[str, Any], prefix: str, theirs: list[int]) -> None:
        """Give each selector of a checkpoint the number that its block has here."""
        ours = self.blocks.tolist()
        weights = {key: state_dict.pop(key) for key in list(state_dict) if key[len(prefix) :].split('.')[0].isdigit()}
        absent = sorted(set(ours) - set(theirs))
        if weights and absent and any(True for _ in self.parameters()):
            raise ValueError(
                f'{prefix[:-1]}: the checkpoint has scorers behind blocks {theirs}, none behind {absent}; set '
                'pruning.blocks or pruning.keep to blocks among them'
            )
        for key, value in weights.items():
            number, name = key[len(prefix) :].split('.', 1)
            block = theirs[int(number)]
            if block in ours:
                state_dict[f'{prefix}{ours.index(block)}.{name}'] = value
        MMLogger.get_current_instance().info(
            f'CroprViT: of the scorers in the checkpoint, those behind blocks {ours} are used'
        )


def build_pruning(
    pruning: dict[str, Any], depth: int, class_token: bool, **shape: Any
) -> tuple[Schedule, PrunerList, Auxiliary]:
    """Check a ``pruning`` dict and build what it asks for.

    Args:
        pruning: see :class:`~cropr_mm.models.cropr_vit.CroprViT`.
        depth: blocks of the transformer.
        class_token: whether the model has a class token.
        shape: ``embed_dim``, ``grid`` and ``patch_size`` for every selector.

    Raises:
        ValueError, TypeError: the message names the key, the value and what is valid.
    """
    if not isinstance(pruning, Mapping) or 'pruner' not in pruning:
        raise ValueError(f'pruning={pruning!r}; None or a dict with pruner and rate, target_ratio or keep is expected')
    settings = dict(pruning)
    unknown = sorted(str(key) for key in set(settings) - set(PRUNING_KEYS))
    if unknown:
        raise ValueError(f'pruning has unknown keys {", ".join(unknown)}; valid are {", ".join(PRUNING_KEYS)}')
    pruner = settings.pop('pruner')
    if not isinstance(pruner, Mapping) or 'type' not in pruner:
        raise ValueError(
            f"pruning.pruner={pruner!r}; a config with a type is expected, such as dict(type='RandomPruner')"
        )
    pruner = dict(pruner)
    if check_flag('pruning.deploy', settings.pop('deploy', False)):
        pruner['deploy'] = True
    recompute = check_flag('pruning.aux_recompute', settings.pop('aux_recompute', False))
    auxiliary = Auxiliary(settings.pop('aux_share', 1.0), recompute)
    schedule = Schedule(depth, shape['grid'], **settings)
    pruners = [MODELS.build({**shape, **pruner}) for _ in schedule.blocks]
    for built in pruners:
        if not isinstance(built, BasePruner):
            raise TypeError(f'pruning.pruner.type={pruner.get("type")!r} is no BasePruner')
        if built.reads_class_attention and not class_token:
            raise ValueError(
                f'pruning.pruner.type={pruner["type"]!r} reads the attention of the class token; arch.class_token=False'
            )
    return schedule, PrunerList(pruners, schedule.blocks), auxiliary
