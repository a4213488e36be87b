"""Making a finished dense model prunable: only the pruners train."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel

from ..compat import remove_prefix
from ..models.vit import CroprViT

_RANDOM_OR_STATISTICS = (_BatchNorm, _InstanceNorm, _DropoutNd, nn.MultiheadAttention)


def check_wrapper(model: nn.Module) -> None:
    """Raise ValueError where a distributed wrapper cannot train a part of the parameters."""
    if not is_model_wrapper(model):
        return
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(f'CroprHook.retrofit=True with {type(model).__name__}; one process or DDP is expected')
    if not model.find_unused_parameters:
        raise ValueError(
            'CroprHook.retrofit=True trains a part of the parameters; set find_unused_parameters=True in the config'
        )


def check_fits(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """See that a checkpoint has every weight that will be frozen.

    Raises:
        ValueError: lists what is missing or of another shape.
    """
    weights = {remove_prefix(name, 'module.'): value for name, value in weights.items()}
    wrong = []
    for name, value in model.state_dict().items():
        if '.pruners.' in f'.{name}':
            continue
        if name not in weights:
            wrong.append(f'{name} is missing')
        elif weights[name].shape != value.shape:
            wrong.append(f'{name} {tuple(weights[name].shape)}, expected {tuple(value.shape)}')
    if wrong:
        more = f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise ValueError(
            'CroprHook.retrofit=True: load_from does not fit the model, and what it lacks would stay random and '
            f'frozen ({"; ".join(wrong[:8])}{more}). A checkpoint of the same config with pruning=None is expected'
        )


def freeze_all_but_pruners(model: nn.Module) -> None:
    """No gradient for any parameter but those of the pruners.

    Raises:
        ValueError: there is nothing to train.
    """
    model.requires_grad_(False)
    pruners = [m.pruners for m in model.modules() if isinstance(m, CroprViT)]
    for pruner in pruners:
        pruner.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            'CroprHook.retrofit=True, but no pruner has parameters; set pruning.pruner.type to CroprPruner'
        )


def evaluate_all_but_pruners(model: nn.Module) -> None:
    """What is random or keeps statistics in evaluation mode, but for what makes the pruners train.

    Heads stay in training mode: some compute something else in evaluation, from which there is no loss.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _RANDOM_OR_STATISTICS) or type(module).__name__ == 'DropPath':  # each library has its own
            module.eval()
    for backbone in (m for m in model.modules() if isinstance(m, CroprViT)):
        backbone.eval()
        backbone.training = True
        backbone.pruners.train()
