"""Methods that are compared with each other: what each changes in a config with a learned pruner.

A name is a pruner (``PRUNERS``) and any number of changes (``CHANGES``): ``'random-50'``, ``'cropr-patch-stages3'``.
Each works on any config whose backbone is a pruned CroprViT, whatever the data.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

from mmengine.config import Config, DictAction

from ..models.archs import resolve_arch
from ..models.pruning.schedule import Schedule, evenly_spaced
from ..utils.checks import is_type
from ..utils.libraries import is_segmentation
from .dense_methods import DENSE_CHANGES

PRUNING = 'model.backbone.pruning'


def change(cfg: Config, options: list[str]) -> None:
    """Put ``KEY=VALUE`` options into a config, as ``--cfg-options`` does.

    Raises:
        ValueError: an option has no ``=``, or its key leads nowhere.
    """
    for option in options:
        key, equals, value = option.partition('=')
        if not key or not equals:
            raise ValueError(f'option {option!r}: KEY=VALUE is expected')
        try:
            cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
        except (KeyError, TypeError) as error:
            raise ValueError(f'option {option!r} does not fit the config: {error}') from error


def _replace(cfg: Config, **pruner: Any) -> None:
    cfg.merge_from_dict({f'{PRUNING}.pruner': dict(_delete_=True, **pruner)})


def _published(head: str) -> Callable[[Config], None]:
    def put(cfg: Config) -> None:
        if head == 'PatchSegAuxHead' and not is_segmentation(cfg):
            raise ValueError('cropr-patch learns from label maps, and the data have boxes; take cropr-multilabel')
        classes = cfg.model.backbone.pruning.pruner.get('num_classes')
        if classes is None:
            raise ValueError(f'{PRUNING}.pruner.num_classes is not in the config; the number of classes is expected')
        _replace(cfg, type='CroprPruner', aux_head=dict(type=head, num_classes=classes))

    return put


def _other(kind: str) -> Callable[[Config], None]:
    return lambda cfg: _replace(cfg, type=kind)


def _oracle(cfg: Config) -> None:
    hook: dict[str, Any] = dict(type='OracleHook')
    if is_segmentation(cfg):
        if not cfg.get('object_classes'):
            raise ValueError('oracle: object_classes is not in the config; a list of labels is expected')
        hook['object_classes'] = list(cfg.object_classes)
    _replace(cfg, type='OraclePruner')
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]


def _option(*options: str) -> Callable[[Config], None]:
    return lambda cfg: change(cfg, list(options))


def schedule_of(cfg: Config) -> Schedule:
    """The schedule of a config's pruned backbone."""
    backbone = cfg.model.backbone
    size, patch = backbone.img_size, backbone.get('patch_size', 16)
    height, width = (size, size) if isinstance(size, int) else size
    plan = {k: v for k, v in backbone.pruning.items() if k in ('rate', 'target_ratio', 'keep', 'blocks', 'round_to')}
    fusion = backbone.pruning.get('fusion', 'last_layer')
    return Schedule(_arch(cfg).depth, (-(-height // patch), -(-width // patch)), fusion=fusion, **plan)


def _arch(cfg: Config) -> Any:
    return resolve_arch(cfg.model.backbone.arch)


def _pruned_share(cfg: Config) -> float:
    """Share of the patch tokens that the schedule prunes in the end, before rounding."""
    schedule = schedule_of(cfg)
    if schedule.keep:
        return 1 - schedule.keep[-1]
    rate: Any = schedule.rate
    return len(schedule.blocks) * (rate / schedule.num_patches if isinstance(rate, int) else rate)


def _ratio(percent: int) -> Callable[[Config], None]:
    def put(cfg: Config) -> None:
        blocks = list(schedule_of(cfg).blocks)
        cfg.merge_from_dict({PRUNING: dict(rate=None, keep=None, target_ratio=percent / 100, blocks=blocks)})

    return put


def _stages(count: int) -> Callable[[Config], None]:
    """Pruners after evenly spaced blocks alone; as many tokens are kept in the end."""

    def put(cfg: Config) -> None:
        blocks = evenly_spaced(_arch(cfg).depth, count)
        cfg.merge_from_dict({PRUNING: dict(target_ratio=_pruned_share(cfg), rate=None, keep=None, blocks=blocks)})

    return put


def _fusion(cfg: Config, fusion: str | None) -> None:
    """Another fusion, with the same pruners."""
    if cfg.model.backbone.pruning.get('keep') is None:
        cfg.merge_from_dict({f'{PRUNING}.blocks': list(schedule_of(cfg).blocks)})
    cfg.merge_from_dict({f'{PRUNING}.fusion': fusion})


def _exit(fill: str = 'exit') -> Callable[[Config], None]:
    """No fusion: tokens return by ``fill``."""

    def put(cfg: Config) -> None:
        _fusion(cfg, None)
        if fill != 'exit':
            reinsertion = _reinsertion(cfg)
            reinsertion.fill = fill
            if fill == 'mask_token':
                reinsertion.embed_dim = _arch(cfg).embed_dim

    return put


def _keep(cfg: Config, plan: dict[str, float]) -> None:
    cfg.merge_from_dict({PRUNING: dict(target_ratio=None, rate=None, blocks=None, keep=None)})
    cfg.model.backbone.pruning.keep = plan  # as a whole: merged, it would be added to the blocks of another plan


def _one_shot(part: int) -> Callable[[Config], None]:
    """One pruner, after the first of so many parts of the blocks; as many tokens are kept in the end."""

    def put(cfg: Config) -> None:
        _keep(cfg, {str(max(0, _arch(cfg).depth // part - 1)): 1 - _pruned_share(cfg)})

    return put


def _two_blocks(cfg: Config) -> None:
    """Half of the tokens after the first block, the rest half-way, as ALGM has it; as many are kept in the end."""
    _keep(cfg, {'0': 0.5, str(_arch(cfg).depth // 2 - 1): 1 - _pruned_share(cfg)})


def _late(cfg: Config) -> None:
    """Tokens return after the last block, by a learned cross-attention."""
    _fusion(cfg, 'cross_attention')


def _logits(cfg: Config) -> None:
    """Tokens do not return; pruned patches take the class that a linear classifier gave them as they left."""
    if not is_segmentation(cfg):
        raise ValueError('-logits: the data have no label maps; pruned patches have classes in segmentation alone')
    _fusion(cfg, 'logits')
    head = cfg.model.decode_head
    _reinsertion(cfg).num_classes = head.num_classes
    cfg.model.decode_head = dict(type='LogitFusionHead', head=head)


def _reinsertion(cfg: Config) -> Any:
    neck = cfg.model.get('neck')
    for part in neck if isinstance(neck, (list, tuple)) else [neck]:
        if is_type(part, 'TokenReinsertion'):
            return part
    raise ValueError(f'model.neck={neck!r}; TokenReinsertion is expected among it')


def _cropr_hook(cfg: Config) -> Any:
    for hook in cfg.get('custom_hooks') or ():
        if is_type(hook, 'CroprHook'):
            return hook
    raise ValueError(f'custom_hooks={cfg.get("custom_hooks")!r}; CroprHook is expected among them')


def _no_curriculum(cfg: Config) -> None:
    _cropr_hook(cfg).ramp = 0


def _retrofit(cfg: Config) -> None:
    """Pruners alone, for half as long, in a finished dense model."""
    _cropr_hook(cfg).retrofit = True
    _finetune(cfg)


def _finetune(cfg: Config) -> None:
    """The whole of a finished dense model, for half as long."""
    key = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    whole = cfg.train_cfg[key]
    cfg.train_cfg[key] = whole // 2
    cfg.train_cfg.val_interval = min(cfg.train_cfg.get('val_interval', 1), whole // 2)
    for scheduler in cfg.param_scheduler:
        for end in ('end', 'T_max'):
            if scheduler.get(end) == whole:
                scheduler[end] = whole // 2


PRUNERS: dict[str, Callable[[Config], None]] = {
    'cropr': lambda cfg: None,
    'random': _other('RandomPruner'),
    'variance': _other('VariancePruner'),
    'attention': _other('AttentionPruner'),
    'tome': _other('ToMeReducer'),
    'algm': _other('ALGMReducer'),
    'expedit': _other('ExpeditReducer'),
    'oracle': _oracle,
    'nonsalient': _option(f'{PRUNING}.pruner.reverse=True'),
    'cropr-multilabel': _published('MultiLabelAuxHead'),
    'cropr-patch': _published('PatchSegAuxHead'),
}
"""Pruner → what it changes. ``cropr`` is the config as it is: ``DifficultyPruner``."""

CHANGES: dict[str, Callable[[Config], None]] = {
    '50': _ratio(50),
    '75': _ratio(75),
    'stages3': _stages(3),
    'midway': _one_shot(2),
    'one-shot': _one_shot(4),
    'two-blocks': _two_blocks,
    'nearest': _option(f'{PRUNING}.absorb=nearest'),
    'fused-token': _option(f'{PRUNING}.absorb=fused_token'),
    'exit': _exit(),
    'late': _late,
    'logits': _logits,
    'zero': _exit('zero'),
    'mask-token': _exit('mask_token'),
    'no-curriculum': _no_curriculum,
    'half': _option(f'{PRUNING}.aux_share=0.5'),
    'stride2': _option(f'{PRUNING}.pruner.aux_head.query_stride=2'),
    'stride4': _option(f'{PRUNING}.pruner.aux_head.query_stride=4'),
    'balanced': _option(f'{PRUNING}.pruner.aux_head.balance=1.0'),
    'retrofit': _retrofit,
    'finetune': _finetune,
    'untrained': lambda cfg: None,
}
"""What may follow a pruner, in the order in which it is named."""

FROM_DENSE = frozenset(['retrofit', 'finetune', 'untrained'])
"""Changes that start from the checkpoint of a finished dense model (``load_from``); the last one ends with it, too."""

RATES = ('50', '75', 'stages3', 'midway', 'one-shot', 'two-blocks')
"""Changes of a method that leave it the same method, faster or slower."""

_PARETO = ('', *(f'-{rate}' for rate in RATES if rate != 'stages3'))
_SCALE = ('dense', 'oracle')  # what the others are measured against, with random
GROUPS = {
    'pruners': (*_SCALE, *(name for name in PRUNERS if name != 'oracle')),
    'rates': tuple(
        f'{pruner}-{setting}'
        for pruner in ('random', 'cropr', 'cropr-multilabel')
        for setting in ('50', '75', 'stages3', 'exit')
    ),
    'returning': ('cropr-no-curriculum', 'cropr-exit', 'cropr-late', 'cropr-logits', 'cropr-zero', 'cropr-mask-token'),
    'cheaper': ('cropr-half', 'cropr-patch-half', 'cropr-patch-stride2', 'cropr-patch-stride4'),
    'retrofit': ('cropr-retrofit', 'cropr-finetune', 'random-finetune'),
    'pareto': (
        'dense',
        *(f'dense-{change}' for change in DENSE_CHANGES),
        *(f'{pruner}{rate}' for pruner in ('cropr', 'random', 'tome') for rate in _PARETO),
        *(f'{pruner}{rate}-untrained' for pruner in ('tome', 'algm', 'expedit') for rate in _PARETO),
    ),
}
"""Names for several methods at once."""


def is_dense(method: str) -> bool:
    """Whether a method has no pruner."""
    return method.split('-')[0] == 'dense'


def parts_of(method: str) -> tuple[str, list[str]]:
    """Pruner, or ``dense``, and changes of a method.

    Raises:
        ValueError: there is no such method; the message lists what is valid.
    """
    for pruner in sorted(('dense', *PRUNERS), key=len, reverse=True):
        changes = '|'.join(DENSE_CHANGES if pruner == 'dense' else CHANGES)
        if re.fullmatch(f'{pruner}(-({changes}))*', method):
            return pruner, re.findall(f'-({changes})(?=-|$)', method[len(pruner) :])
    raise ValueError(
        f'method {method!r} is unknown; valid are dense, dense followed by -{", -".join(DENSE_CHANGES)}, the pruners '
        f'{", ".join(PRUNERS)}, and each of these followed by changes: -{", -".join(CHANGES)}'
    )


def needs_label_maps(method: str) -> bool:
    """Whether a method fits segmentation alone."""
    pruner, changes = parts_of(method)
    return pruner == 'cropr-patch' or 'logits' in changes


def apply_method(cfg: Config, method: str) -> None:
    """Change a config with a ``DifficultyPruner``, or that of the dense model, into that of a method.

    Raises:
        ValueError: there is no such method, or it does not fit the config.
    """
    pruner, changes = parts_of(method)
    if pruner == 'dense':
        for name in changes:
            DENSE_CHANGES[name](cfg)
        return
    if cfg.model.backbone.get('pruning') is None:
        raise ValueError(f'{PRUNING}=None; a dict with pruner is expected, which method {method!r} changes')
    PRUNERS[pruner](cfg)
    for name in changes:
        CHANGES[name](cfg)


def own_method(text: str) -> tuple[str, str, list[str]]:
    """Name, method to begin with, and options of ``NAME='[METHOD] KEY=VALUE …'``.

    Raises:
        ValueError: another form, or the name of a method that is there already.
    """
    name, _, rest = text.partition('=')
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f'method {text!r}: {error}') from error
    base = words.pop(0) if words and '=' not in words[0] else 'cropr'
    if not re.fullmatch(r'\w[\w.-]*', name) or not words or any('=' not in word for word in words):
        raise ValueError(
            f"method {text!r}: NAME='KEY=VALUE …' or NAME='METHOD KEY=VALUE …' is expected, the name of letters, "
            'digits, -, _ and .'
        )
    parts_of(base)
    taken = name in GROUPS or name == 'dense'
    if not taken:
        try:
            parts_of(name)
            taken = True
        except ValueError:
            pass
    if taken:
        raise ValueError(f'method {name!r} is there already; choose another name')
    return name, base, words
