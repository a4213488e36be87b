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
import math
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.measure import draw, measure
from cropr_mm.benchmark.variants import VARIANTS, build_variants
from cropr_mm.checkpoint import read_checkpoint
from cropr_mm.cli.arguments import new_file, new_picture, plain_errors, print_written
from cropr_mm.cli.timed_model import (
    add_model_arguments,
    add_setting_arguments,
    build_timed_model,
    described,
    read_model_config,
    setting_of,
    timed_batch,
)
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_integer, check_number
from cropr_mm.utils.compat import remove_prefix
from cropr_mm.utils.io import write_json
from cropr_mm.utils.libraries import register_library


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group('what')
    add_model_arguments(what)
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
    add_setting_arguments(how, 10, '0: count operations and tokens, time nothing')
    parser.add_argument('--json', type=new_file, metavar='OUT', help='also write the figures to this file')
    parser.add_argument('--plot', type=new_picture, metavar='OUT', help='also draw them')
    return parser.parse_args()


def read_config(args: argparse.Namespace) -> Config:
    """The model, with the rate that is asked for."""
    cfg = read_model_config(args)
    backbone = cfg.model.backbone
    rate = args.rate if args.rate is not None or backbone.get('pruning') else 88
    if rate is not None:
        plan = dict(backbone.get('pruning') or {}, rate=int(rate) if 1 <= rate < math.inf else rate)
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


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        setting = setting_of(args)
        check_integer('--num-classes', args.num_classes)
        check_number('--progress', args.progress, least=0, most=1)
        if args.progress < 1 and not args.train:
            raise ValueError(f'--progress={args.progress}: inference prunes at the full rate; --train is expected')
        torch.manual_seed(0)
        cfg = read_config(args)
        if args.whole_model:
            register_library(cfg)
        backbone = cfg.model.backbone
        variants = build_variants(
            lambda pruning: build_timed_model(cfg, args.whole_model, pruning, args.device),
            backbone.pruning,
            args.variants,
            args.num_classes,
            args.train,
            weights_for(args),
            f'--checkpoint {args.checkpoint}',
        )
        for model in variants.values():
            find_backbone(model).pruning_progress = args.progress
        batch = timed_batch(args, cfg, args.num_classes)
        height, width = batch['inputs'].shape[-2:]
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
            options=args.cfg_options,
            checkpoint=args.checkpoint,
            training=args.train,
            progress=args.progress,
            **described(args, (height, width)),
            pruning={key: value for key, value in backbone.pruning.items() if key != 'pruner'},
            variants=figures,
        )
        write_json(args.json, report)
    if args.plot and args.rounds:
        draw(figures, args.plot, f'{subject}, {work}, {height} × {width}, batch {args.batch_size}')
    print_written(args.json, args.plot if args.rounds else None)


if __name__ == '__main__':
    main()
