"""The same weights with different pruners, to be measured against one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import load_strictly
from ..models import CroprPruner
from ..models.cropr_vit import find_backbone

LEARNED = 'cropr'
"""Name of the config's own learned pruner."""

TRAINING_FREE: dict[str, dict[str, Any]] = dict(
    random=dict(type='RandomPruner'),
    variance=dict(type='VariancePruner'),
    attention=dict(type='AttentionPruner'),
    tome=dict(type='ToMeReducer'),
    algm=dict(type='ALGMReducer'),
    expedit=dict(type='ExpeditReducer'),
)
"""Reducers without parameters, for any finished dense model."""

VARIANTS = ('dense', LEARNED, 'difficulty', 'multilabel', 'patch', *TRAINING_FREE)


def pruner_of(name: str, own: Mapping[str, Any] | None, num_classes: int) -> dict[str, Any]:
    """Config of the pruner that a name stands for.

    Args:
        name: one of :data:`VARIANTS` but ``'dense'``.
        own: the pruner of the config, for ``'cropr'``; ``'difficulty'`` replaces one that does not learn.
        num_classes: of pruners that learn.
    """
    if name == LEARNED and own and _is_learned(own):
        return dict(own)
    heads = dict(multilabel='MultiLabelAuxHead', patch='PatchSegAuxHead')
    if name in heads:
        return dict(type='CroprPruner', aux_head=dict(type=heads[name], num_classes=num_classes))
    if name in (LEARNED, 'difficulty'):
        return dict(type='DifficultyPruner', num_classes=num_classes)
    return dict(TRAINING_FREE[name])


def _is_learned(pruner: Mapping[str, Any]) -> bool:
    kind = MODELS.get(pruner['type']) if isinstance(pruner['type'], str) else pruner['type']
    return isinstance(kind, type) and issubclass(kind, CroprPruner)


def pruning_of(variant: str, pruning: Mapping[str, Any], num_classes: int) -> dict[str, Any] | None:
    """The ``pruning`` of a variant.

    Args:
        variant: one of :data:`VARIANTS`, and after a colon settings of ``pruning`` that differ, separated by commas,
            such as ``'patch:aux_share=0.5,pruner.aux_head.query_stride=2'``.
        pruning: the schedule, and the pruner that ``'cropr'`` stands for.
        num_classes: classes of auxiliary heads that the config does not have.

    Raises:
        ValueError: an unknown variant, or settings that are none.
    """
    name, _, options = variant.partition(':')
    if name not in VARIANTS:
        raise ValueError(f'variant {name}; valid are {", ".join(VARIANTS)}')
    changes = [option.partition('=') for option in options.split(',')] if options else []
    if (changes and name == 'dense') or not all(key and equals for key, equals, _ in changes):
        raise ValueError(f'variant {variant}; name:key=value,key=value is expected, with keys of pruning')
    if name == 'dense':
        return None
    plan = {key: value for key, value in pruning.items() if key not in ('pruner', 'deploy')}
    cfg = Config(dict(pruning={**plan, 'pruner': pruner_of(name, pruning.get('pruner'), num_classes)}))
    cfg.merge_from_dict({f'pruning.{key}': DictAction._parse_iterable(value) for key, _, value in changes})
    return cfg.pruning.to_dict()


def build_variants(
    build: Callable[[dict[str, Any] | None], nn.Module],
    pruning: Mapping[str, Any] | None,
    names: Sequence[str] = ('dense', LEARNED, 'random'),
    num_classes: int = 150,
    training: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    source: str = 'a variant with another pruner',
) -> dict[str, nn.Module]:
    """The same model dense and with different pruners; all weights but those of the pruners are the same.

    Args:
        build: makes a model that holds a CroprViT, or is one, from the ``pruning`` of its backbone (None: dense).
        pruning, num_classes: see :func:`pruning_of`.
        names: see there, of the variants.
        training: in training mode, with auxiliary parts; otherwise folded and ready for inference.
        weights: of all variants, pruners left out; None: those that the first variant is built with.
        source: what a message calls the weights.

    Raises:
        ValueError: no ``pruning``, or an unknown variant.
    """
    if not pruning:
        raise ValueError('backbone.pruning is not set; a rate or keep is needed for the pruned variants')
    variants: dict[str, nn.Module] = {}
    for name in names:
        model = build(pruning_of(name, pruning, num_classes))
        if weights is not None:
            _copy_weights(weights, model, source)
        weights = weights or model.state_dict()
        variants[name] = model
    for model in variants.values():
        if not training:
            find_backbone(model).switch_to_deploy()
        model.train(training)
    return variants


def _copy_weights(given: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    weights = {name: value for name, value in given.items() if 'pruners.' not in name}
    pruners = {name: value for name, value in model.state_dict().items() if 'pruners.' in name}
    load_strictly(model, {**weights, **pruners}, source)
