"""What tools that time a model share: options for the model and for how it runs, and building it."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS
from torch import nn

from ..benchmark.batches import random_batch
from ..benchmark.machine import describe_machine
from ..benchmark.measure import Setting
from ..engine.checks import check_config
from ..utils.checks import check_integer, is_type
from .arguments import key_value
from .config import merge_options, read_config
from .model import build_model


def add_model_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options for :func:`read_model_config`."""
    parser.add_argument('--config', help='take the model of this config instead of the next three')
    parser.add_argument(
        '--whole-model', action='store_true', help='neck and head of the config too, not its backbone alone'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=key_value,
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change settings of the config',
    )
    parser.add_argument('--arch', default='eva02-base')
    parser.add_argument('--patch-size', type=int, default=16)
    parser.add_argument('--img-size', type=int, help='side of the images in pixels (512, or as in the config)')


def add_setting_arguments(parser: argparse._ArgumentGroup, rounds: int, rounds_help: str) -> None:
    """Add the options for :func:`setting_of`, and ``--batch-size`` and ``--threads``."""
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument(
        '--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32', help='in training of autocast'
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true', help='torch.compile of the blocks')
    parser.add_argument('--cuda-graph', action='store_true', help='record calls as CUDA graphs')
    parser.add_argument('--rounds', type=int, default=rounds, help=rounds_help)
    parser.add_argument('--threads', type=int, help='CPU threads of torch (default: its own choice)')


def setting_of(args: argparse.Namespace, least_rounds: int = 0) -> Setting:
    """Check the options of :func:`add_setting_arguments`, set the threads, and say how models are run.

    Raises:
        ValueError: an option is out of range, or the device is not there.
    """
    check_integer('--batch-size', args.batch_size)
    check_integer('--rounds', args.rounds, least_rounds)
    if args.threads is not None:
        torch.set_num_threads(check_integer('--threads', args.threads))
    training = getattr(args, 'train', False)
    return Setting(args.device, getattr(torch, args.dtype), training, args.compile, args.cuda_graph, args.rounds)


def described(args: argparse.Namespace, sides: tuple[int, int]) -> dict[str, Any]:
    """What was timed, how and where, for a report."""
    how = ('whole_model', 'batch_size', 'dtype', 'device', 'compile', 'cuda_graph', 'rounds')
    settings = {key: getattr(args, key) for key in how}
    return dict(model=args.config or args.arch, img_size=list(sides), **settings, **describe_machine(args.device))


def read_model_config(args: argparse.Namespace) -> Config:
    """The model that the options ask for, with initial weights, which play no part in what a backbone takes.

    Raises:
        FileNotFoundError: the config is not there.
        ValueError: its backbone is no CroprViT, or the whole of a model is asked for without one.
    """
    for option, side in (('--img-size', args.img_size), ('--patch-size', args.patch_size)):
        if side is not None:
            check_integer(option, side)
    if args.config:
        cfg = read_config(args.config, '--config=')
        merge_options(cfg, args.cfg_options)
        backbone = (cfg.get('model') or {}).get('backbone') or {}
        if not is_type(backbone, 'CroprViT'):
            kind = backbone.get('type')
            raise ValueError(f"--config={args.config!r}: model.backbone.type={kind!r}; 'CroprViT' is expected")
        check_config(cfg)
    elif args.whole_model:
        raise ValueError('--whole-model: --config is needed, for neck and head')
    else:
        backbone = dict(type='CroprViT', arch=args.arch, img_size=args.img_size or 512, patch_size=args.patch_size)
        cfg = Config(dict(model=dict(backbone=backbone)))
    cfg.model.backbone.init_cfg = None
    return cfg


def timed_batch(args: argparse.Namespace, cfg: Config, num_classes: int) -> dict[str, Any]:
    """A random batch for the model, of the size that the options ask for: ``inputs`` and ``data_samples``."""
    side = args.img_size or cfg.model.backbone.get('img_size', 224)
    height, width = (side, side) if isinstance(side, int) else side
    scope = cfg.get('default_scope', '') if args.whole_model else ''
    return random_batch(scope, args.batch_size, height, width, num_classes, args.device)


def build_timed_model(cfg: Config, whole: bool, pruning: dict[str, Any] | None, device: str) -> nn.Module:
    """Build the model, or its backbone alone, with another ``pruning``."""
    if not whole:
        with torch.device(device):  # where initial values are drawn sooner
            return MODELS.build({**cfg.model.backbone.to_dict(), 'pruning': pruning})
    cfg = Config(cfg.to_dict())
    cfg.model.backbone.pruning = pruning
    return build_model(cfg)
