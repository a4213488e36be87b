"""Making a finished dense model prunable: only the pruners train."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.names import shorten
from ..checkpoint.pruners import PREFIXES
from ..checkpoint.whole_model import load_what_fits
from ..models.cropr_vit import CroprViT
from ..utils.checks import is_type

_RANDOM_OR_STATISTICS = (_BatchNorm, _InstanceNorm, _DropoutNd, nn.MultiheadAttention)


def check_wrapper(model: nn.Module) -> None:
    """Raise ValueError where a distributed wrapper cannot train a part of the parameters."""
    ddp = isinstance(model, DistributedDataParallel) and not isinstance(model, MMSeparateDistributedDataParallel)
    if is_model_wrapper(model) and not ddp:
        raise ValueError(f'CroprHook.retrofit=True with {type(model).__name__}; one process or DDP is expected')


def check_fits(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has every weight that will be frozen, by loading it.

    Raises:
        ValueError: lists what is missing or of another shape.
    """
    missing = load_what_fits(model, weights, 'CroprHook.retrofit=True: load_from').missing_keys
    wrong = [f'{name} is missing' for name in missing if not any(f'.{own}' in f'.{name}' for own in PREFIXES)]
    if wrong:
        raise ValueError(
            'CroprHook.retrofit=True: load_from does not fit the model, and what it lacks would stay random and '
            f'frozen ({shorten(wrong, 8)}). A checkpoint of the same config with pruning=None is expected'
        )


def check_start(model: nn.Module, loaded: bool) -> None:
    """Check that the weights to be frozen are not random.

    Args:
        model: unwrapped.
        loaded: whether a checkpoint was loaded into all of it.

    Raises:
        ValueError: neither that nor an ``init_cfg`` with a checkpoint, of the model or of its backbone.
    """
    parts: list[nn.Module] = [model, *(m for m in model.modules() if isinstance(m, CroprViT))]
    settings = [getattr(part, 'init_cfg', None) for part in parts]
    entries = [entry for part in settings for entry in (part if isinstance(part, (list, tuple)) else [part])]
    if not loaded and not any(is_type(entry, 'Pretrained', 'PretrainedInit') for entry in entries):
        raise ValueError(
            'CroprHook.retrofit=True, but no checkpoint gives the model its weights, and what is random would stay '
            'frozen; set load_from to a checkpoint of the same config with pruning=None'
        )
    inside = {p for part in parts[1:] for p in part.parameters()}
    names = [name for name, parameter in model.named_parameters() if parameter not in inside]
    if not loaded and names and not is_type(getattr(model, 'init_cfg', None), 'Pretrained', 'PretrainedInit'):
        print_log(
            'CroprHook.retrofit=True: init_cfg of the backbone gives it its weights, and what else the model has stays '
            f'as it was built, and frozen ({shorten(names, 4)}); set load_from to a checkpoint of the whole model',
            'current',
            logging.WARNING,
        )


def wrap_again(runner: Runner) -> None:
    """Put the model, whose parameters are frozen by now, into a new DistributedDataParallel.

    mmengine wraps before any hook runs. The wrapper made then would reduce the gradients of all parameters, and hang
    at those that have none.

    Raises:
        ValueError: another wrapper.
    """
    check_wrapper(runner.model)
    if not is_model_wrapper(runner.model):
        return
    model, strategy = runner.model.module, getattr(runner, 'strategy', None)
    runner.model = None
    if strategy is not None:  # of a FlexibleRunner
        strategy.model = None
    gc.collect()  # with the old wrapper its hooks on the gradients go, and the memory for reducing them
    if strategy is None:
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
    else:
        runner.model = strategy.model = strategy._wrap_model(model)


def freeze_all_but_pruners(model: nn.Module) -> tuple[int, int]:
    """No gradient for any parameter but those of the pruners.

    Returns:
        How many parameters train, and how many are frozen.

    Raises:
        ValueError: there is nothing to train.
    """
    model.requires_grad_(False)
    for backbone in (m for m in model.modules() if isinstance(m, CroprViT)):
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.startswith(PREFIXES))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            'CroprHook.retrofit=True, but no pruner has parameters; set pruning.pruner.type to CroprPruner'
        )
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts[True], counts[False]


def modules_to_evaluate(model: nn.Module) -> list[nn.Module]:
    """Modules that stay in evaluation mode: the backbone but for its pruners, and what is random or keeps statistics.

    Heads stay in training mode: some compute something else in evaluation, from which there is no loss.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, _RANDOM_OR_STATISTICS) or type(module).__name__ == 'DropPath'  # each library has its own
    ]
    for backbone in (m for m in model.modules() if isinstance(m, CroprViT)):
        found += [m for name, m in backbone.named_modules() if name and not f'{name}.'.startswith(PREFIXES)]
    return found


def evaluate_all_but_pruners(model: nn.Module) -> None:
    """Training mode, but for :func:`modules_to_evaluate`."""
    model.train()
    for module in modules_to_evaluate(model):
        module.training = False
