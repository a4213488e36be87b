"""From a config to mmengine's Runner, for mmsegmentation, mmdetection and mmpretrain alike."""

from __future__ import annotations

import atexit
import gc
import os
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import register_backend
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from ..checkpoint import check_checkpoint
from ..engine.bfloat16 import let_mmcv_take_bfloat16
from ..utils.checks import is_type
from ..utils.io import check_place, whole_file
from .model import check_model

_SHARDING = ('FSDPStrategy', 'CroprFSDPStrategy')


def set_resume(cfg: Config, resume: str | None) -> None:
    """Resume from a checkpoint, or with ``'auto'`` from the last one in the work dir.

    Where there is none yet, the config's own ``load_from`` stands: a run that fine-tunes starts from it.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it is cut off.
    """
    if resume is not None:
        begun = resume != 'auto' or find_latest_checkpoint(cfg.work_dir) is not None
        cfg.resume = begun or not cfg.get('load_from')
        if begun:
            cfg.load_from = None if resume == 'auto' else resume
    checkpoint = cfg.get('load_from')
    if cfg.get('resume') and not checkpoint:
        checkpoint = find_latest_checkpoint(cfg.work_dir)
    if checkpoint and '://' not in checkpoint:
        check_checkpoint(checkpoint, '--resume' if resume else 'load_from')


class WholeFiles(LocalBackend):
    """mmengine's local files, written whole or not at all: checkpoints, above all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with whole_file(filepath) as partial:
            partial.write_bytes(obj)


def build_runner(cfg: Config) -> Runner:
    """Build the runner; several processes also work on a machine without an accelerator (gloo).

    Raises:
        ValueError: the launcher needs an accelerator that is not there, or a hook needs whole weights under FSDP.
    """
    if is_type(cfg.get('strategy'), *_SHARDING):
        _check_sharding(cfg)
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ValueError(
            '--launcher pytorch: no process is started by it; tools/dist_train.sh and dist_test.sh do that'
        )
    if cfg.launcher != 'none' and not has_accelerator():
        _start_on_cpu(cfg)
    check_model(cfg)
    if cfg.get('work_dir'):
        check_place(cfg.work_dir, folder=True)
    register_backend('local', WholeFiles, force=True, prefixes='')
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    let_mmcv_take_bfloat16()  # for models without a CroprHook
    return runner


def _check_sharding(cfg: Config) -> None:
    if cfg.launcher == 'none':
        cfg.strategy = ConfigDict(type='SingleDeviceStrategy')  # one process has nobody to share the weights with
    elif any(is_type(hook, 'EMAHook') for hook in cfg.get('custom_hooks') or ()):
        raise ValueError(
            f'custom_hooks has EMAHook, which copies whole weights, and strategy.type={cfg.strategy["type"]!r} leaves '
            'a shard of them to each process; take the one or the other out'
        )


def _start_on_cpu(cfg: Config) -> None:
    """Join the other processes here, since mmengine's launcher sets a CUDA device and gives it to DDP in any case."""
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs an accelerator, and torch finds none; on CPU use --launcher pytorch'
        )
    torch.distributed.init_process_group('gloo')
    atexit.register(_end_processes)
    _wrap_on_cpu(cfg)


def _end_processes() -> None:
    """Stop gloo's threads, which may otherwise abort a process that ends."""
    torch.distributed.destroy_process_group()
    gc.collect()  # a runner and its model are a cycle, and FSDP's modules hold the group


def _wrap_on_cpu(cfg: Config) -> None:
    """Keep mmengine from giving a CUDA device to the model's wrapper."""
    ddp = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    if 'runner_type' not in cfg:
        ddp['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = {**ddp, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
        return
    strategy = cfg.setdefault('strategy', ConfigDict(type='DDPStrategy'))
    wrapper = strategy.get('model_wrapper') or {}
    if is_type(strategy, *_SHARDING):  # a class of its own kind is a DDPStrategy, too
        strategy.model_wrapper = {'type': 'MMFullyShardedDataParallel', **wrapper, 'device_id': 'cpu'}
    elif is_type(strategy, 'DDPStrategy'):
        strategy.model_wrapper = {**ddp, **wrapper, 'device_ids': None}


def has_accelerator() -> bool:
    """Whether torch finds a device that mmengine trains on in mixed precision and in several processes."""
    from mmengine.device import get_device

    return get_device() not in ('cpu', 'mps')
