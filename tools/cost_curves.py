"""Draw the speed-up over the dense model against input size, batch size and pruning rate.

    python tools/cost_curves.py --json results/cost-curves.json --plot docs/images/cost-curves.png
    python tools/cost_curves.py --arch eva02-large --sizes 512 768 1024 1536 2048 --device cuda --dtype bfloat16

One of the three changes at a time, from the first value of each list; dense, Cropr and random pruning are timed in turn
at each point. The rate is the share of all tokens pruned per module: it means the same at all sizes.
"""

from __future__ import annotations

import argparse
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from cropr_mm import CroprViT
from cropr_mm.benchmark.batches import random_batch
from cropr_mm.benchmark.figures import save_figure
from cropr_mm.benchmark.machine import check_device, describe_machine
from cropr_mm.benchmark.measure import Setting, measure
from cropr_mm.benchmark.variants import build_variants
from cropr_mm.cli.arguments import new_file, new_picture, plain_errors, print_written
from cropr_mm.models.archs import resolve_arch
from cropr_mm.utils.checks import check_integer, check_number
from cropr_mm.utils.io import write_json
from cropr_mm.utils.progress import track

AXES = dict(size='side of the image in pixels', batch='images per batch', rate='share of tokens pruned per module')
VARIANTS = ('dense', 'cropr', 'random')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='eva02-small')
    parser.add_argument('--sizes', dest='size', type=int, nargs='+', default=[512, 768, 1024, 1536])
    parser.add_argument('--batches', dest='batch', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--rates', dest='rate', type=float, nargs='+', default=[0.086, 0.02, 0.04, 0.06, 0.097])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--json', type=new_file, required=True, metavar='OUT')
    parser.add_argument('--plot', type=new_picture, metavar='OUT')
    return parser.parse_args()


def build(arch: str, size: int, pruning: dict[str, Any] | None) -> CroprViT:
    return CroprViT(arch, size, 16, pruning=pruning)


def measure_point(args: argparse.Namespace, size: int, batch: int, rate: float) -> dict[str, Any]:
    variants = build_variants(partial(build, args.arch, size), dict(rate=rate), VARIANTS)
    setting = Setting(args.device, getattr(torch, args.dtype), rounds=args.rounds)
    figures = measure(variants, random_batch('', batch, size, size, 150, args.device), setting)
    kept = ('images_per_second', 'spread', 'ratio_to_dense', 'gflops', 'flops_limit', 'peak_bytes')
    return dict(size=size, batch=batch, rate=rate, **{n: {k: row[k] for k in kept} for n, row in figures.items()})


def draw(points: dict[str, list[dict[str, Any]]], path: str, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=120, facecolor='white', layout='constrained')
    for axis, (name, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items()):
        rows = sorted(points[name], key=itemgetter(name))
        x = [row[name] for row in rows]
        for variant, colour in (('cropr', 'tab:blue'), ('random', 'tab:orange')):
            axis.plot(x, [row[variant]['ratio_to_dense'] for row in rows], 'o-', color=colour, label=variant)
        axis.plot(x, [row['cropr']['flops_limit'] for row in rows], '--', color='0.4', label='FLOPs limit')
        axis.axhline(1, color='black', lw=0.8)
        axis.set_xlabel(label)
        axis.set_xticks(x)
        axis.grid(alpha=0.25)
    figure.axes[0].set_ylabel('× dense, images/s')
    figure.axes[0].legend()
    save_figure(figure, path, title)


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        for option in ('size', 'batch'):
            for value in getattr(args, option):
                check_integer(f'--{option}{"es" if option == "batch" else "s"}', value)
        for rate in args.rate:
            check_number('--rates', rate, above=0, below=1)
        check_integer('--rounds', args.rounds)
        check_device('--device', args.device)
        resolve_arch(args.arch)
        measure_axes(args)


def measure_axes(args: argparse.Namespace) -> None:
    """Time all points, print them, and write the files."""
    torch.manual_seed(0)
    first = {axis: getattr(args, axis)[0] for axis in AXES}
    points: dict[str, list[dict[str, Any]]] = {axis: [] for axis in AXES}
    start = measure_point(args, **first)
    places = [(axis, value) for axis in AXES for value in getattr(args, axis)]
    for axis, value in track(places, 'points'):
        row = start if value == first[axis] else measure_point(args, **{**first, axis: value})
        points[axis].append(row)
        ratios = ', '.join(f'{name} {row[name]["ratio_to_dense"]:.2f}×' for name in VARIANTS[1:])
        print(f'{axis} {value}: {ratios}; FLOPs limit {row["cropr"]["flops_limit"]:.2f}', flush=True)
    surroundings = describe_machine(args.device)
    settings = dict(arch=args.arch, dtype=args.dtype, device=args.device, rounds=args.rounds)
    write_json(args.json, dict(**settings, **surroundings, **points))
    if args.plot:
        draw(points, args.plot, f'{args.arch}, {args.dtype}, {surroundings["machine"]}')
    print_written(args.json, args.plot)


if __name__ == '__main__':
    main()
