"""Measure pruned models against the dense one: same weights, timed in turn in one run.

    python tools/benchmark.py                          # EVA-02-base, 512 × 512, 88 tokens per module, batch 4
    python tools/benchmark.py --config configs/sample/fcn_cropr-vit_sample.py --whole-model --batch-size 16
    python tools/benchmark.py --variants dense cropr patch random --train --batch-size 2
    python tools/benchmark.py --arch vit-large --rate 0.04 --device cuda --dtype bfloat16 --cuda-graph --json speed.json

Time, memory at its peak, FLOPs, the share of the FLOPs limit that is reached (speed-up over FLOPs dense / FLOPs
pruned), tokens per block, and where the time goes. A backbone needs torch and mmengine alone; whole models, and
configs that inherit from a library's, need that library.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS
from torch import Tensor, nn

from cropr_mm.benchmark.batches import random_batch
from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.measure import Setting, draw, measure
from cropr_mm.benchmark.variants import VARIANTS, build_variants
from cropr_mm.checkpoint import read_checkpoint
from cropr_mm.cli.arguments import plain_errors
from cropr_mm.cli.model import build_model
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_integer, check_number
from cropr_mm.utils.compat import remove_prefix
from cropr_mm.utils.io import write_json
from cropr_mm.utils.libraries import register_library


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group('what')
    what.add_argument('--config', help='take the model of this config instead of the next three')
    what.add_argument(
        '--whole-model', action='store_true', help='neck and head of the config too, not its backbone alone'
    )
    what.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change settings of the config',
    )
    what.add_argument('--arch', default='eva02-base')
    what.add_argument('--patch-size', type=int, default=16)
    what.add_argument('--img-size', type=int, help='side of the images in pixels (512, or as in the config)')
    what.add_argument(
        '--rate', type=float, help='tokens per module, or with a value below 1 their share (88, or as in the config)'
    )
    what.add_argument(
        '--variants',
        nargs='+',
        default=['dense', 'cropr', 'random'],
        metavar='NAME',
        help=f'{", ".join(VARIANTS)}; the first is the baseline, cropr the pruner of the config; settings of pruning '
        'may follow, as in patch:aux_share=0.5,pruner.aux_head.query_stride=2',
    )
    what.add_argument('--checkpoint', help='its weights, pruners left out, in place of initial ones')
    what.add_argument('--num-classes', type=int, default=150, help='of labels, and of auxiliary heads by name')
    how = parser.add_argument_group('how')
    how.add_argument('--train', action='store_true', help='time training steps in place of inference')
    how.add_argument(
        '--progress', type=float, default=1.0, help='with --train: share of the final rate, as in the curriculum'
    )
    how.add_argument('--batch-size', type=int, default=4)
    how.add_argument(
        '--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32', help='with --train of autocast'
    )
    how.add_argument('--device', default='cpu')
    how.add_argument('--compile', action='store_true', help='torch.compile of the blocks')
    how.add_argument('--cuda-graph', action='store_true', help='record calls as CUDA graphs')
    how.add_argument('--rounds', type=int, default=10, help='0: count operations and tokens, time nothing')
    how.add_argument('--threads', type=int, help='CPU threads of torch (default: its own choice)')
    parser.add_argument('--json', metavar='OUT', help='also write the figures to this file')
    parser.add_argument('--plot', metavar='OUT', help='also draw them')
    return parser.parse_args()


def read_config(args: argparse.Namespace) -> Config:
    """The model that the options ask for, with initial weights, which play no part in what a backbone takes."""
    if args.config:
        if not Path(args.config).is_file():
            raise FileNotFoundError(f'--config={args.config!r}: no such file')
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        kind = cfg.model.backbone.get('type')
        if kind != 'CroprViT':
            raise ValueError(f"--config={args.config!r}: model.backbone.type={kind!r}; 'CroprViT' is expected")
    elif args.whole_model:
        raise ValueError('--whole-model: --config is needed, for neck and head')
    else:
        backbone = dict(type='CroprViT', arch=args.arch, img_size=args.img_size or 512, patch_size=args.patch_size)
        cfg = Config(dict(model=dict(backbone=backbone)))
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    rate = args.rate if args.rate is not None or backbone.get('pruning') else 88
    if rate is not None:
        plan = dict(backbone.get('pruning') or {}, rate=int(rate) if rate >= 1 else rate)
        backbone.pruning = {key: value for key, value in plan.items() if key not in ('keep', 'target_ratio')}
    return cfg


def weights_for(args: argparse.Namespace) -> dict[str, Tensor] | None:
    """The weights of ``--checkpoint``: of the whole model, or of its backbone."""
    if not args.checkpoint:
        return None
    weights, _ = read_checkpoint(args.checkpoint)
    if args.whole_model:
        return weights
    return {remove_prefix(k, 'backbone.'): v for k, v in weights.items() if k.startswith('backbone.')} or weights


def build(cfg: Config, whole: bool, pruning: dict[str, Any] | None, device: str) -> nn.Module:
    settings = cfg.model.backbone.to_dict()
    if not whole:
        with torch.device(device):  # where initial values are drawn sooner
            return MODELS.build({**settings, 'pruning': pruning})
    cfg = Config(cfg.to_dict())
    cfg.model.backbone.pruning = pruning
    return build_model(cfg)


# title, figure, how it is shown
COLUMNS = (
    ('images/s', 'images_per_second', '{:.2f}'),
    ('spread', 'spread', '{:.1%}'),
    ('× dense', 'ratio_to_dense', '{:.2f}'),
    ('GFLOPs', 'gflops', '{:.4g}'),
    ('limit', 'flops_limit', '{:.2f}'),
    ('reached', 'share_of_flops_limit', '{:.2f}'),
    ('peak MB', 'peak_bytes', '{:.0f}'),
    ('pruned', 'tokens_pruned_ratio', '{:.1%}'),
)


def print_table(figures: dict[str, dict[str, Any]]) -> None:
    columns = [column for column in COLUMNS if all(column[1] in row for row in figures.values())]
    width = max(map(len, figures)) + 2
    print(' ' * width + ''.join(f'{title:>10}' for title, _, _ in columns))
    for name, row in figures.items():
        values = (form.format(row[key] / 2**20 if key == 'peak_bytes' else row[key]) for _, key, form in columns)
        print(f'{name:{width}}' + ''.join(f'{value:>10}' for value in values))
    parts = list(dict.fromkeys(part for row in figures.values() for part in row.get('milliseconds_of_parts', {})))
    if parts:
        print('\nms per batch\n' + ' ' * width + ''.join(f'{part:>11}' for part in parts))
        for name, row in figures.items():
            times = row['milliseconds_of_parts']
            print(f'{name:{width}}' + ''.join(f'{times[p]:11.2f}' if p in times else f'{"–":>11}' for p in parts))
    print('\ntokens per block')
    for counts, names in _same(figures):
        print(f'{", ".join(names)}: {" ".join(map(str, counts))}')


def _same(figures: dict[str, dict[str, Any]]) -> list[tuple[tuple[int, ...], list[str]]]:
    """Variants by the tokens that their blocks process."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, row in figures.items():
        groups.setdefault(tuple(row['tokens_per_block']), []).append(name)
    return list(groups.items())


def main() -> None:
    args = parse_args()
    with plain_errors():
        for key, least in (('batch_size', 1), ('num_classes', 1), ('rounds', 0)):
            check_integer(f'--{key.replace("_", "-")}', getattr(args, key), least)
        check_number('--progress', args.progress, least=0, most=1)
        if args.progress < 1 and not args.train:
            raise ValueError(f'--progress={args.progress}: inference prunes at the full rate; --train is expected')
        if args.threads:
            torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        setting = Setting(
            args.device, getattr(torch, args.dtype), args.train, args.compile, args.cuda_graph, args.rounds
        )
        cfg = read_config(args)
        if args.whole_model:
            register_library(cfg)
        backbone = cfg.model.backbone
        variants = build_variants(
            lambda pruning: build(cfg, args.whole_model, pruning, args.device),
            backbone.pruning,
            args.variants,
            args.num_classes,
            args.train,
            weights_for(args),
        )
        for model in variants.values():
            find_backbone(model).pruning_progress = args.progress
        side = args.img_size or backbone.get('img_size', 224)
        height, width = (side, side) if isinstance(side, int) else side
        scope = cfg.get('default_scope', '') if args.whole_model else ''
        batch = random_batch(scope, args.batch_size, height, width, args.num_classes, args.device)
        subject = f'{args.config or args.arch}, {"whole model" if args.whole_model else "backbone"}'
        work = 'training step' if args.train else 'inference'
        options = [name for name in ('compile', 'cuda_graph') if getattr(args, name)]
        surroundings = describe_machine(args.device)
        print(
            f'{subject}: {work}, {height} × {width}, batch {args.batch_size}, '
            f'{", ".join([args.dtype, *options])}\n{args.device}: {surroundings["machine"]} '
            f'({surroundings["threads"]} threads), torch {torch.__version__}; median of {args.rounds} rounds in turn\n',
            flush=True,
        )
        figures = measure(variants, batch, setting)
    print_table(figures)
    if args.json:
        report = dict(
            model=args.config or args.arch,
            options=args.cfg_options,
            checkpoint=args.checkpoint,
            whole_model=args.whole_model,
            training=args.train,
            progress=args.progress,
            img_size=[height, width],
            batch_size=args.batch_size,
            dtype=args.dtype,
            device=args.device,
            compile=args.compile,
            cuda_graph=args.cuda_graph,
            rounds=args.rounds,
            pruning={key: value for key, value in backbone.pruning.items() if key != 'pruner'},
            **surroundings,
            variants=figures,
        )
        write_json(args.json, report)
    if args.plot and args.rounds:
        draw(figures, args.plot, f'{subject}, {work}, {height} × {width}, batch {args.batch_size}')


if __name__ == '__main__':
    main()
