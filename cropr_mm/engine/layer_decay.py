"""Layer-wise learning-rate decay: the closer a block is to the image, the less its pre-trained weights move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Tuple

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

from ..models.plain_vit import PlainViT
from ..utils.checks import check_number, is_number

KEYS = ('layer_decay_rate', 'custom_keys')
Key = Tuple[Any, ...]  # layer, then what tells the groups of a layer apart
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, _InstanceNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CroprLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives each block of a CroprViT a learning rate of its own (Clark et al., arXiv 2003.10555).

    ``optim_wrapper = dict(constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9), …)``. Layer 0 is the embedding with positions and prefix tokens,
    layer i + 1 is block i, and the last layer, ``depth + 1``, is everything else: final norm, pruners, necks, heads.
    The factor is ``rate ** (depth + 1 - layer)``. The CroprViT may sit anywhere in the model, and there may be several.

    No weight decay on norms, biases and other parameters of one dimension, positional embeddings and prefix tokens of
    the CroprViT, and the queries of its pruners. Frozen parameters get into no group.

    Args:
        optim_wrapper_cfg: see mmengine's ``DefaultOptimWrapperConstructor``; ``optimizer`` with ``lr`` and
            ``weight_decay`` is needed.
        paramwise_cfg: ``layer_decay_rate``, above 0 and at most 1, and optionally ``custom_keys`` as mmengine has
            them: the settings of the longest key that is a part of a parameter's name. ``lr_mult`` multiplies the
            factor of the layer; ``decay_mult`` replaces the rule above.

    Raises:
        ValueError: an unknown key, a value out of range, a model without CroprViT or PlainViT, or nothing to train.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        for key in ('lr', 'weight_decay'):
            check_number(f'optim_wrapper.optimizer.{key}', self.optimizer_cfg.get(key), least=0)
        where = 'optim_wrapper.paramwise_cfg'
        unknown = sorted(set(self.paramwise_cfg) - set(KEYS))
        if unknown:
            raise ValueError(f'{where} has unknown keys {", ".join(unknown)}; valid are {", ".join(KEYS)}')
        check_number(f'{where}.layer_decay_rate', self.paramwise_cfg.get('layer_decay_rate'), above=0, most=1)
        for key, settings in self.paramwise_cfg.get('custom_keys', {}).items():
            if not isinstance(settings, dict) or not all(
                is_number(settings.get(mult, 1)) and settings.get(mult, 1) >= 0 for mult in ('lr_mult', 'decay_mult')
            ):
                raise ValueError(
                    f'{where}.custom_keys.{key}={settings!r}; a dict is expected in which lr_mult and decay_mult are '
                    'numbers of 0 or more'
                )

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append the groups of a model, from layer 0 on."""
        vits = {name: vit for name, vit in module.named_modules() if isinstance(vit, PlainViT)}
        if not vits:
            raise ValueError(
                f'{type(self).__name__}: {type(module).__name__} has neither CroprViT nor PlainViT; set '
                'model.backbone.type to one of them or take optim_wrapper.constructor out'
            )
        last = max(vit.depth for vit in vits.values()) + 1
        groups: dict[Key, dict[str, Any]] = {}
        contents: dict[Key, dict[str, None]] = {}
        for owner, name, parameter in _trainable(module):
            home, path = _locate(name, vits)
            distance = 0 if home is None else vits[home].depth + 1 - _layer(path, vits[home].depth)
            no_decay = isinstance(owner, NORMS) or parameter.ndim <= 1 or (home is not None and _is_token(path))
            settings = dict(self._custom(name))
            lr = self.base_lr * self.paramwise_cfg['layer_decay_rate'] ** distance * settings.pop('lr_mult', 1)
            decay = self.base_wd * settings.pop('decay_mult', 0 if no_decay else 1)
            key = (last - distance, -decay, lr, repr(settings))
            groups.setdefault(key, dict(params=[], lr=lr, weight_decay=decay, **settings))['params'].append(parameter)
            contents.setdefault(key, {})[_part(home, path)] = None
        if not groups:
            raise ValueError(f'{type(self).__name__}: no parameter of {type(module).__name__} requires a gradient')
        params.extend(groups[key] for key in sorted(groups))
        if is_main_process():
            print_log(_table(groups, contents), logger='current')

    def _custom(self, name: str) -> dict[str, Any]:
        keys: dict[str, Any] = self.paramwise_cfg.get('custom_keys', {})
        matching = sorted((key for key in keys if key in name), key=lambda key: (-len(key), key))
        return keys[matching[0]] if matching else {}


def _trainable(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter that requires a gradient, once, with the module that holds it and its name."""
    seen: set[nn.Parameter] = set()
    for prefix, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield owner, f'{prefix}.{name}' if prefix else name, parameter


def _locate(name: str, vits: Mapping[str, PlainViT]) -> tuple[str | None, str]:
    """The CroprViT that a parameter belongs to, or None, and the parameter's name inside of it."""
    for home in vits:
        if not home or name.startswith(f'{home}.'):
            return home, name[len(home) :].lstrip('.')
    return None, name


def _layer(path: str, depth: int) -> int:
    """Layer of a CroprViT's parameter by its name inside of it."""
    part, *rest = path.split('.')
    if part == 'blocks':
        return int(rest[0]) + 1
    return depth + 1 if part in ('norm', 'late_return', 'pruners') else 0


def _is_token(path: str) -> bool:
    """Whether a CroprViT's parameter is added to tokens or compared with them: the model's own, and the queries."""
    return '.' not in path or (path.startswith('pruners.') and path.endswith('.queries'))


def _part(home: str | None, path: str) -> str:
    """A parameter's name, cut after the part of the model that the layers tell apart."""
    parts = path.split('.')
    if home is None:
        return parts[0]
    return '.'.join(filter(None, [home, *parts[: 2 if parts[0] == 'blocks' else 1]]))


def _table(groups: Mapping[Key, dict[str, Any]], contents: Mapping[Key, Iterable[str]]) -> str:
    rows = [('layer', 'lr', 'weight decay', 'tensors', 'parameters', 'what is in it')]
    for key in sorted(groups):
        group = groups[key]
        count = sum(parameter.numel() for parameter in group['params'])
        numbers = f'{group["lr"]:.3g}', f'{group["weight_decay"]:.3g}', str(len(group['params'])), f'{count:,}'
        rows.append((str(key[0]), *numbers, ', '.join(contents[key])))
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows))]
    lines = ('  '.join([*(cell.rjust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows)
    return '\n'.join(['Layer-wise learning-rate decay', *lines])
