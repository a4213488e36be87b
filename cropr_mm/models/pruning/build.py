"""From the ``pruning`` dict of a config to a schedule, its pruners and what they learn from."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any

from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from ...checkpoint.pruners import block_of, key_pruners_by_block
from ...utils.checks import check_flag
from .absorb import ABSORB
from .base import BasePruner, BaseReducer
from .schedule import Schedule
from .supervision.collector import AuxCollector

SCHEDULE_KEYS = ('rate', 'target_ratio', 'keep', 'blocks', 'round_to', 'fusion')
PRUNING_KEYS = ('pruner', *SCHEDULE_KEYS, 'aux_share', 'aux_recompute', 'deploy', 'fused', 'absorb')


class Pruners(nn.ModuleDict):
    """The pruners of a model. The key of each is the number of the block that it stands after.

    So a checkpoint trained with one schedule serves another: what scores after block 2 is ``pruners.2`` in both.
    """

    if TYPE_CHECKING:  # ModuleDict knows of modules alone

        def __getitem__(self, key: str) -> BaseReducer: ...
        def values(self) -> ValuesView[BaseReducer]: ...
        def items(self) -> ItemsView[str, BaseReducer]: ...

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        key_pruners_by_block(state_dict, prefix)
        if len(self):
            self._drop_other_blocks(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _drop_other_blocks(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Leave out the pruners of a checkpoint that this model has no block for; refuse one that lacks a block."""
        block_by_name = {name: block_of(name, prefix) for name in state_dict}
        theirs = sorted({block for block in block_by_name.values() if block is not None})
        ours = sorted(int(block) for block, pruner in self.items() if any(True for _ in pruner.parameters()))
        absent = [block for block in ours if block not in theirs]
        if theirs and absent:
            raise ValueError(
                f'{prefix[:-1]}: the checkpoint has pruners after blocks {theirs}, none after {absent}; set '
                'pruning.blocks or pruning.keep to blocks among them'
            )
        others = [name for name, block in block_by_name.items() if block is not None and str(block) not in self]
        for name in others:
            del state_dict[name]
        if others:
            MMLogger.get_current_instance().info(
                f'CroprViT: of the pruners in the checkpoint, those after blocks {ours} are used'
            )


def build_pruning(
    pruning: dict[str, Any], depth: int, class_token: bool, **shape: Any
) -> tuple[Schedule, Pruners, AuxCollector]:
    """Check a ``pruning`` dict and build what it asks for.

    Args:
        pruning: see :class:`~cropr_mm.models.cropr_vit.CroprViT`.
        depth: blocks of the transformer.
        class_token: whether the model has a [CLS] token.
        shape: ``embed_dim``, ``grid`` and ``patch_size`` for every pruner.

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
    fused = settings.pop('fused', None)
    fused = None if fused is None else check_flag('pruning.fused', fused)
    absorb = settings.pop('absorb', None)
    if absorb is not None and (not isinstance(absorb, str) or absorb not in ABSORB):
        raise ValueError(f'pruning.absorb={absorb!r}; None, {", ".join(map(repr, ABSORB))} are valid')
    recompute = check_flag('pruning.aux_recompute', settings.pop('aux_recompute', False))
    supervision = AuxCollector(settings.pop('aux_share', 1.0), recompute)
    schedule = Schedule(depth, shape['grid'], **settings)
    if schedule.fusion == 'logits':
        _check_classifies(pruner['type'], absorb)
        pruner['classify'] = True
    pruners = Pruners({str(block): MODELS.build({**shape, **pruner}) for block in schedule.blocks})
    for built in pruners.values():
        if not isinstance(built, BaseReducer):
            raise TypeError(f'pruning.pruner.type={pruner["type"]!r} is neither a BasePruner nor a BaseReducer')
        if isinstance(built, BasePruner):
            built.fused, built.absorb = fused, None if absorb is None else ABSORB[absorb]
            built.fits_windows = built.fits_windows and absorb != 'nearest'
        elif fused or absorb:
            setting = 'fused=True' if fused else f'absorb={absorb!r}'
            raise ValueError(
                f'pruning.{setting} with pruning.pruner.type={pruner["type"]!r}; a BasePruner is expected, whose '
                'tokens are kept or pruned by one score each'
            )
        if built.needs_class_token and not class_token:
            raise ValueError(
                f'pruning.pruner.type={pruner["type"]!r} reads the attention of the [CLS] token; arch.class_token=False'
            )
    return schedule, pruners, supervision


def _check_classifies(kind: Any, absorb: Any) -> None:
    built = MODELS.get(kind) if isinstance(kind, str) else kind
    if not getattr(built, 'classifies', False):
        raise ValueError(
            f"pruning.fusion='logits' with pruning.pruner.type={kind!r}; a pruner that classifies what it prunes is "
            'expected, such as DifficultyPruner'
        )
    if absorb is not None:
        raise ValueError(
            f"pruning.fusion='logits' with pruning.absorb={absorb!r}; None is expected, as each pruned token has "
            'logits of its own'
        )
