"""Training with sharded weights (FSDP) in mmengine's FlexibleRunner."""

from __future__ import annotations

from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..checkpoint.names import strip_module, strip_wrappers
from ..checkpoint.whole_model import weights_of
from ..models.layers import Block


@FUNCTIONS.register_module()
def wrap_vit_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` for a CroprViT: each block is a unit, everything else belongs to the outermost."""
    return lambda_auto_wrap_policy(module, recurse, nonwrapped_numel, lambda part: isinstance(part, Block))


@STRATEGIES.register_module()
class CroprFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy with the optimizer that the same config has without sharding.

    The parameter groups are made before the model is wrapped. Afterwards a parameter is a flat shard with another
    name, so rules by name, by number of dimensions (no weight decay on biases) and by module would be wrong
    unnoticed. ``clip_grad`` clips by the norm of the whole gradient, not of each shard by its own. Training resumes:
    mmengine 0.10 calls PyTorch before 2.1.

    Checkpoints are whole files by default, as those of one process (``state_dict_cfg='full'``).

    Args: see mmengine's FSDPStrategy. ``model_wrapper.use_orig_params`` must be True, mmengine's default.

    Raises:
        ValueError: a setting that would train something else than the config says.
    """

    def __init__(self, *, model_wrapper: dict[str, Any] | None = None, state_dict_cfg: Any = 'full', **kwargs: Any):
        wrapper = dict(model_wrapper or {})
        wrapper.setdefault('type', 'MMFullyShardedDataParallel')
        if not wrapper.get('use_orig_params', True):
            raise ValueError(
                'strategy.model_wrapper.use_orig_params=False leaves no parameters to tell apart; True is expected'
            )
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if get_device() == 'cpu':  # where weights are already, PyTorch frees what it would have copied
            self.state_dict_config.offload_to_cpu = self.optim_state_dict_config.offload_to_cpu = False

    def prepare(self, model: Any, *, optim_wrapper: Any = None, **kwargs: Any) -> Any:
        """Build the optimizer on the model as it is before it is wrapped."""
        if isinstance(optim_wrapper, dict) and not self._prepared:
            optim_wrapper.setdefault('type', 'OptimWrapper')
            if optim_wrapper['type'] == 'AmpOptimWrapper':
                optim_wrapper.setdefault('use_fsdp', True)
            model = self.build_model(model)
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper, model: nn.Module | None = None) -> OptimWrapper:
        """Put the shards in place of the parameters that they are of."""
        assert isinstance(model, FSDP)
        shards = {strip_wrappers(name): parameter for name, parameter in model.named_parameters()}
        self._names: list[str] = []
        for group in optim_wrapper.optimizer.param_groups:
            names = [self.id_to_name[id(parameter)] for parameter in group['params']]
            group['params'] = [shards[name] for name in names]
            self._names += names
        if optim_wrapper.clip_grad_kwargs and optim_wrapper.clip_func is nn.utils.clip_grad_norm_:
            optim_wrapper.clip_func = lambda parameters, **settings: model.clip_grad_norm_(**settings)
        return optim_wrapper

    def optim_state_dict(self) -> dict[str, Any]:
        wrapper = self.optim_wrapper
        # What the wrapper keeps besides: the base rate for the log, the loss scale of mixed precision.
        beside = {key: value for key, value in wrapper.state_dict().items() if key not in ('state', 'param_groups')}
        return {**FSDP.optim_state_dict(self.model, wrapper.optimizer), **beside}

    def model_state_dict(self) -> dict[str, Any]:
        state = super().model_state_dict()
        metadata = getattr(state, '_metadata', None)
        if metadata is not None:  # PyTorch takes FSDP's names out of those of weights alone
            state._metadata = {strip_module(name): entry for name, entry in metadata.items()}
        return state

    def load_model_state_dict(self, state_dict: dict[str, Any], *, strict: bool = False, **unused: Any) -> None:
        weights: Any = weights_of(dict(state_dict=state_dict), 'checkpoint')  # under DDP it has the wrapper's names
        metadata = getattr(weights, '_metadata', {})
        modules = {name: metadata.get(strip_module(name)) for name, _ in self.model.named_modules()}
        weights._metadata = {name: entry for name, entry in modules.items() if entry is not None}
        wrong = self.model.load_state_dict(weights, strict=strict)
        for what, names in (('missing', wrong.missing_keys), ('left over', wrong.unexpected_keys)):
            if names:
                listed = ', '.join(sorted(map(strip_wrappers, names)))
                self.logger.warning(f'{type(self).__name__}: of the weights in the checkpoint, {what}: {listed}')

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this strategy saved, or what one process or DDP saved with the same config."""
        saved = [parameter for group in state_dict['param_groups'] for parameter in group['params']]
        names = dict(zip(saved, self._names))  # numbers, where parameters were not sharded; in the same order
        sharded = dict(
            state={names[key]: value for key, value in state_dict['state'].items()},
            param_groups=[
                {**group, 'params': [names[key] for key in group['params']]} for group in state_dict['param_groups']
            ],
        )
        # By name: the order of the arguments changed in PyTorch 2.1.
        sharded = FSDP.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=sharded
        )
        self.optim_wrapper.load_state_dict({**state_dict, **sharded})
