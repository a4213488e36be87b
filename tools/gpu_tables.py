"""Time EVA-02-L on a GPU, dense and pruned: the table of docs/performance.md, in a minute or two.

    python tools/gpu_tables.py --json results/gpu-NAME.json
    python tools/gpu_tables.py --dry-run                      # every row on a CPU, on a tiny model, without figures

In bfloat16: inference with and without CUDA graphs and the fused kernel, windows, training steps. Pruned by the
recommended pruner after every block, and in three stages at nearly the same FLOPs. The file is written anew after each
row.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from cropr_mm.benchmark.batches import random_batch
from cropr_mm.benchmark.machine import check_device, describe_machine
from cropr_mm.benchmark.measure import Setting, measure
from cropr_mm.benchmark.variants import build_variants
from cropr_mm.cli.arguments import new_file, plain_errors, print_written
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import write_json
from cropr_mm.utils.progress import track

THREE_STAGES = {5: 0.7, 11: 0.4, 17: 0.16}
RATES = {512: 40, 1024: 160, 1536: 408}
"""Side of the images in pixels → tokens per pruner; as published for 512 and 1536. Taken as a share of all tokens."""


@dataclass(frozen=True)
class Row:
    """One row of the table: side of the images, batch, and how they run (``fused``: see ``BasePruner``)."""

    side: int
    batch: int
    graph: bool = False
    windows: bool = False
    training: bool = False
    fused: bool = False

    @property
    def name(self) -> str:
        parts = [f'{self.side}²', 'windows of 16' if self.windows else '', f'batch {self.batch}']
        return ', '.join(part for part in parts if part)

    @property
    def how(self) -> str:
        if self.training:
            return 'training step'
        return ', '.join(word for word, on in (('CUDA graph', self.graph), ('fused', self.fused)) if on)


ROWS = (
    Row(512, 32),
    Row(512, 8),
    Row(512, 8, graph=True),
    Row(512, 1, graph=True),
    Row(512, 1),
    Row(512, 8, graph=True, fused=True),
    Row(512, 1, graph=True, fused=True),
    Row(512, 1, fused=True),
    Row(1024, 1, graph=True),
    Row(1024, 1),
    Row(1536, 1, windows=True),
    Row(1536, 1, windows=True, graph=True),
    Row(512, 8, training=True),
)


def build(row: Row, device: str, shrink: int) -> dict[str, nn.Module]:
    """The models of a row: dense, pruned after every block and in three stages."""
    arch: Any = dict(family='eva02', embed_dim=64, depth=24, num_heads=2) if shrink > 1 else 'eva02-large'
    windows = dict(window_size=16 // shrink) if row.windows else {}

    def backbone(pruning: dict[str, Any] | None) -> nn.Module:
        with torch.device(device):
            settings = dict(type='CroprViT', arch=arch, img_size=row.side // shrink, patch_size=16, **windows)
            return MODELS.build(dict(settings, pruning=pruning and dict(pruning, fused=row.fused)))

    rate = RATES[row.side] / (row.side // 16) ** 2
    models = build_variants(backbone, dict(rate=rate), ['dense', 'difficulty'], training=row.training)
    stages = build_variants(
        backbone, dict(keep=THREE_STAGES), ['difficulty'], training=row.training, weights=models['dense'].state_dict()
    )
    return {**models, 'three stages': stages['difficulty']}


HEAD = """| input, batch | | dense, images/s | after every block | after blocks 5, 11, 17 | FLOPs limits |
| --- | --- | ---: | ---: | ---: | ---: |"""


def line(row: Row, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line of the table in Markdown."""

    def cell(figure: Mapping[str, Any]) -> str:
        spread = f' (spread {figure["spread"]:.0%})' if figure['spread'] > 0.02 else ''
        return f'{figure["ratio_to_dense"]:.2f}×{spread}'

    first, *others = figures.values()
    limits = ', '.join(f'{figure["flops_limit"]:.2f}' for figure in others)
    return f'| {row.name} | {row.how} | {first["images_per_second"]:.0f} | {" | ".join(map(cell, others))} | {limits} |'


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--rounds', type=int, default=4, help='of each model, in turn')
    parser.add_argument('--json', type=new_file, metavar='OUT', help='also write the figures to this file')
    parser.add_argument('--dry-run', action='store_true', help='on a CPU, on a tiny model, timing nothing')
    args = parser.parse_args()
    report: list[dict[str, Any]] = []
    with plain_errors():
        device, rounds, shrink = ('cpu', 0, 4) if args.dry_run else (args.device, args.rounds, 1)
        check_integer('--rounds', rounds, 0 if args.dry_run else 1)
        check_device('--device', device)
        machine = describe_machine(device)
        if rounds:
            print(HEAD, flush=True)
        for row in track(ROWS, 'rows'):
            graph = row.graph and not args.dry_run
            setting = Setting(device, torch.bfloat16, row.training, cuda_graph=graph, rounds=rounds)
            models = build(row, device, shrink)
            side = row.side // shrink
            figures = measure(
                models, random_batch('', 1 if args.dry_run else row.batch, side, side, 150, device), setting
            )
            if rounds:
                print(line(row, figures), flush=True)
            else:
                print(row.name, row.how, *(f'{name}: {figure["gflops"]:.3f}' for name, figure in figures.items()))
            report.append(dict(row=row.name, how=row.how, model='eva02-large', dtype='bfloat16', rounds=rounds))
            report[-1].update(batch_size=row.batch, **machine, variants=figures)
            if args.json:
                write_json(args.json, report)
    print_written(args.json)


if __name__ == '__main__':
    main()
