"""From the command line to mmengine's Runner, for mmsegmentation, mmdetection and mmpretrain configs alike.

What goes wrong before a run starts (a misspelt path, a data set that is not there, a library that is not
installed, half a checkpoint) is said in one line that names the key and the file.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ..checkpoint.read import check_checkpoint
from ..deploy import load_every_parameter, read_checkpoint
from ..engine.bfloat16 import let_mmcv_take_bfloat16
from ..engine.checks import check_config
from ..utils.checks import is_type

_SHARDING = ('FSDPStrategy', 'CroprFSDPStrategy')
_WRONG_INPUT = (ValueError, FileNotFoundError, ModuleNotFoundError)
_INSTALL = dict(mmseg='mmsegmentation', mmdet='mmdet', mmpretrain='mmpretrain')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change settings of the config, e.g. train_cfg.max_iters=100 '
        'model.backbone.pruning.rate=16; lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes the one spelling or the other, depending on its version
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


@contextmanager
def plain_errors(kinds: tuple[type[Exception], ...] = _WRONG_INPUT) -> Iterator[None]:
    """End the program with one line instead of a traceback where its input is at fault: one of these exceptions."""
    try:
        yield
    except kinds as error:
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and put the shared command line options into it.

    Raises:
        FileNotFoundError: There is no such config; the message names similar ones.
        ModuleNotFoundError: The library that the config is for is not installed.
        ValueError: A CroprViT stands in the config, and what it replaces has not gone completely.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = Path(args.config).expanduser()
    if not path.is_file():
        near = _similar_configs(path)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise FileNotFoundError(f'config {str(args.config)!r}: no such file{hint}')
    cfg = Config.fromfile(str(path))
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', path.stem)
    register_library(cfg)
    check_config(cfg)
    return cfg


def _similar_configs(path: Path) -> list[str]:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder in (Path(), Path('/')):
        folder = folder / 'configs'
    found = folder.glob('*.py') if folder == path.parent else folder.rglob('*.py')
    names = {str(file): file.name for file in islice(found, 5000)}
    near = difflib.get_close_matches(path.with_suffix('.py').name, names.values(), n=3, cutoff=0.5)
    return sorted((file for file, name in names.items() if name in near), key=lambda file: near.index(names[file]))[:3]


def register_library(cfg: Config) -> None:
    """Register the modules of the config's own library, and of no other."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope == 'mmengine':
        return
    if importlib.util.find_spec(scope) is None:
        package = _INSTALL.get(scope, scope)
        raise ModuleNotFoundError(
            f'default_scope={scope!r} of the config needs the package {package}, which is '
            f'not installed: pip install {package}'
        )
    try:
        utils = importlib.import_module(f'{scope}.utils')
        if hasattr(utils, 'register_all_modules'):
            utils.register_all_modules(init_default_scope=False)
    except ModuleNotFoundError as error:  # mmpretrain needs torchvision, which it does not declare
        package = _INSTALL.get(scope, scope)
        raise ModuleNotFoundError(
            f'default_scope={scope!r} of the config needs the package {package}, and that the module {error.name}, '
            f'which is not installed'
        ) from error


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """See that the files of the data sets are there, before a model is built.

    Paths that are not on this machine's disk (``s3://``, other backends) are left to mmengine.

    Args:
        cfg: The config. ``cfg.data_hint``, where there is one, is a sentence that says where the data come from.
        loaders: Keys of the data loaders that the run will use.

    Raises:
        FileNotFoundError: Names the config key, the path and the hint.
    """
    for loader in loaders:
        for key, dataset in _datasets(cfg.get(loader) or {}, loader):
            for name, path in _dataset_paths(dataset):
                if not os.path.exists(path):
                    raise _missing(f'{key}.{name}', path, cfg.get('data_hint'))


def _missing(key: str, path: str, hint: str | None) -> FileNotFoundError:
    return FileNotFoundError(f'{key}: {os.path.abspath(path)} does not exist{f". {hint}" if hint else ""}')


def _datasets(holder: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All data sets inside a loader or a wrapper (concatenated, repeated, ...)."""
    if isinstance(holder.get('dataset'), dict):
        yield from _datasets(holder['dataset'], f'{key}.dataset')
    elif isinstance(holder.get('datasets'), (list, tuple)):
        for i, part in enumerate(holder['datasets']):
            yield from _datasets(part, f'{key}.datasets[{i}]')
    else:
        yield key, holder


def _dataset_paths(dataset: Any) -> Iterator[tuple[str, str]]:
    if dataset.get('backend_args') or dataset.get('file_client_args'):
        return
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    paths = {
        'data_root': root,
        'ann_file': dataset.get('ann_file') or '',
        **{f'data_prefix.{name}': prefix for name, prefix in prefixes.items()},
    }
    for name, path in paths.items():
        if isinstance(path, str) and path and '://' not in root + path:
            yield name, path if name == 'data_root' else os.path.join(root, path)


def check_weights(cfg: Config) -> None:
    """See that the checkpoints from which the parts of the model start are there, before a model is built.

    Addresses (``https://``, ``torchvision://``, …) are left to what loads them.

    Args:
        cfg: The config. ``cfg.checkpoint_hint``, where there is one, is a sentence that says where they come from.

    Raises:
        FileNotFoundError: Names the config key, the path and the hint.
    """
    for key, settings in _pretrained(cfg.get('model') or {}, 'model'):
        path = settings.get('checkpoint')
        if isinstance(path, str) and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
            raise _missing(f'{key}.checkpoint', os.path.expanduser(path), cfg.get('checkpoint_hint'))


def _pretrained(part: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All initialisations from a checkpoint inside a model's config."""
    if is_type(part, 'Pretrained', 'PretrainedInit'):
        yield key, part
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from _pretrained(value, f'{key}.{name}')
    elif isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            yield from _pretrained(value, f'{key}[{i}]')


def set_resume(cfg: Config, resume: str | None) -> None:
    """Resume from a checkpoint, or with ``'auto'`` from the last one in the work dir.

    Where there is none yet, the config's own ``load_from`` stands: a run that fine-tunes starts from it.

    Raises:
        FileNotFoundError: The checkpoint is not there.
        ValueError: It is cut off.
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


def build_runner(cfg: Config) -> Runner:
    """Build the runner; several processes also work on a machine without an accelerator (gloo).

    Raises:
        ValueError: the launcher needs an accelerator that is not there, or a hook needs whole weights under FSDP.
    """
    sharded = is_type(cfg.get('strategy'), *_SHARDING)
    if sharded and cfg.launcher != 'none' and any(is_type(hook, 'EMAHook') for hook in cfg.get('custom_hooks') or ()):
        raise ValueError(
            f'custom_hooks has EMAHook, which copies whole weights, and strategy.type={cfg.strategy["type"]!r} leaves '
            'a shard of them to each process; take the one or the other out'
        )
    if cfg.launcher != 'none' and not _has_accelerator():
        # mmengine's launcher sets a CUDA device and gives it to DDP in any case.
        if cfg.launcher != 'pytorch':
            raise ValueError(
                f'--launcher {cfg.launcher} needs an accelerator, and torch finds none; on CPU use --launcher pytorch'
            )
        torch.distributed.init_process_group('gloo')
        atexit.register(_end_processes)
        _wrap_on_cpu(cfg)
    elif cfg.launcher == 'none' and sharded:
        cfg.strategy = ConfigDict(type='SingleDeviceStrategy')  # one process has nobody to share the weights with
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    let_mmcv_take_bfloat16()  # for models without a CroprHook
    return runner


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


def _has_accelerator() -> bool:
    from mmengine.device import get_device

    return get_device() not in ('cpu', 'mps')


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config for inference on one device, with initial weights."""
    scope = cfg.get('default_scope', 'mmengine')
    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != scope:
        DefaultScope.get_instance(f'{scope}-{time.time()}', scope_name=scope)
    settings = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:  # mmpretrain's configs have it beside the model
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(settings))
    for hook in cfg.get('custom_hooks') or ():
        if is_type(hook, 'OracleHook'):  # that selector reads the labels outside of a runner, too
            HOOKS.build(hook).attach(model)
    let_mmcv_take_bfloat16()
    model.eval()  # not every model returns itself (knowledge distillation in mmdetection)
    return model


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the model of a config for inference and load a checkpoint into it.

    Raises:
        FileNotFoundError: The checkpoint is not there.
        ValueError: It is cut off, or lacks parameters of the model, which would stay random.
    """
    if '://' not in checkpoint:
        check_checkpoint(checkpoint)
    weights, meta = read_checkpoint(checkpoint)
    model = build_model(cfg)
    load_every_parameter(model, weights, f'{checkpoint}:')
    model.dataset_meta = meta.get('dataset_meta', {})
    return model
