"""Time a pruned backbone against the dense one, interleaved, on the same weights.

    python tools/benchmark.py                          # EVA-02-base, 512 × 512, 88 tokens per module, batch 4
    python tools/benchmark.py --config configs/sample/fcn_cropr-vit_sample.py --batch-size 16
    python tools/benchmark.py --arch vit-large --rate 0.04 --device cuda --dtype float16 --json speed.json

Needs torch and mmengine alone (a config that inherits from mmseg or mmdet also needs that library).
"""

from __future__ import annotations

import argparse
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from cropr_mm.analysis.flops import count_flops, pruned_ratio, tokens_per_block
from cropr_mm.analysis.throughput import build_variants, compare_throughput
from cropr_mm.engine.launch import plain_errors
from cropr_mm.files import write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='take model.backbone of this config instead of the next four')
    parser.add_argument('--arch', default='eva02-base')
    parser.add_argument('--img-size', type=int, help='side of the images in pixels (512, or as in the config)')
    parser.add_argument('--patch-size', type=int, default=16)
    parser.add_argument(
        '--rate', type=float, help='tokens per module, or with a value below 1 their share (88, or as in the config)'
    )
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--threads', type=int, help='CPU threads of torch (default: its own choice)')
    parser.add_argument('--json', metavar='OUT', help='also write the figures to this file')
    return parser.parse_args()


def backbone_config(args: argparse.Namespace) -> dict[str, Any]:
    """The backbone that the options ask for; its weights play no part in the timing and are not loaded."""
    if args.config:
        if not Path(args.config).is_file():
            raise FileNotFoundError(f'--config={args.config!r}: no such file')
        backbone = dict(Config.fromfile(args.config).model.backbone.to_dict())
        if backbone.get('type') != 'CroprViT':
            raise ValueError(
                f"--config={args.config!r}: model.backbone.type={backbone.get('type')!r}; 'CroprViT' is expected"
            )
    else:
        backbone = dict(type='CroprViT', arch=args.arch, img_size=512, patch_size=args.patch_size)
    backbone['init_cfg'] = None
    if args.img_size and not args.config:
        backbone['img_size'] = args.img_size
    rate = args.rate if args.rate is not None or backbone.get('pruning') else 88
    if rate is not None:
        backbone['pruning'] = dict(backbone.get('pruning') or {}, rate=int(rate) if rate >= 1 else rate)
        backbone['pruning'].pop('keep', None)
    return backbone


def main() -> None:
    args = parse_args()
    with plain_errors():
        if args.threads:
            torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        backbone = backbone_config(args)
        models = build_variants(backbone)
        side = args.img_size or backbone.get('img_size', 224)
        height, width = (side, side) if isinstance(side, int) else side
        dtype = getattr(torch, args.dtype)
        images = torch.randn(args.batch_size, 3, height, width, device=args.device, dtype=dtype)
        for model in models.values():
            model.to(args.device, dtype)
        print(
            f'{args.config or args.arch}: {height} × {width}, batch {args.batch_size}, {args.dtype} on '
            f'{args.device} ({torch.get_num_threads()} threads), torch {torch.__version__}; '
            f'median of {args.rounds} interleaved rounds',
            flush=True,
        )
        flops = {name: count_flops(model, images) / args.batch_size for name, model in models.items()}
        timings = compare_throughput(
            {name: partial(model.forward, images) for name, model in models.items()},
            args.batch_size,
            args.rounds,
            device=args.device,
        )
    report: dict[str, Any] = dict(
        model=args.config or args.arch,
        img_size=[height, width],
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        machine=platform.machine(),
        pruning={k: v for k, v in backbone['pruning'].items() if k != 'pruner'},
        variants={},
    )
    print(f'{"":8}{"images/s":>10}{"spread":>9}{"× dense":>9}{"GFLOPs":>9}{"of FLOPs limit":>16}{"pruned":>9}')
    for name, model in models.items():
        speedup = timings[name].ratio_to(timings['dense'])
        limit = flops['dense'] / flops[name]
        row = dict(
            images_per_second=timings[name].images_per_second,
            spread=timings[name].spread,
            ratio_to_dense=speedup,
            gflops=flops[name] / 1e9,
            share_of_flops_limit=speedup / limit,
            tokens_pruned_ratio=pruned_ratio(model, height, width),
            tokens_per_block=tokens_per_block(model, height, width),
        )
        report['variants'][name] = row
        print(
            f'{name:8}{row["images_per_second"]:10.2f}{row["spread"]:9.1%}{speedup:9.2f}{row["gflops"]:9.4g}'
            f'{row["share_of_flops_limit"]:16.2f}{row["tokens_pruned_ratio"]:9.1%}'
        )
    print('tokens per block, pruned:', *report['variants']['cropr']['tokens_per_block'])
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
