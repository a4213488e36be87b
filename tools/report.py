"""See what the reduction of tokens did: one HTML file with images, a slider through the blocks, and numbers of the set.

    python tools/report.py configs/sample/fcn_cropr-vit_sample.py work_dirs/demo/train/iter_600.pth report.html
    python tools/report.py CONFIG CHECKPOINT report.html --dense DENSE_CONFIG DENSE_CHECKPOINT --reducer tome
    python tools/report.py CONFIG CHECKPOINT report.html --files photo.jpg other.jpg

Models are compared with the dense one: the same weights with every token in every block, or that of --dense.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.variants import TRAINING_FREE
from cropr_mm.cli.arguments import add_run_arguments, new_file, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.evaluation import check_one_process, spread
from cropr_mm.cli.inputs import check_images
from cropr_mm.report.charts import load_altair
from cropr_mm.report.contenders import Contender, load_contender, time_contenders, with_reducer, without_reduction
from cropr_mm.report.page import write_page
from cropr_mm.report.summary import SetSummary, summarize
from cropr_mm.utils.checks import check_integer, check_number


def new_page(text: str) -> str:
    if not text.endswith(('.html', '.htm')):
        raise argparse.ArgumentTypeError(f'{text!r}: a file name that ends in .html is expected')
    return new_file(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation, mmdetection or mmpretrain, with a CroprViT')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', type=new_page, help='HTML file to write')
    parser.add_argument(
        '--images', type=int, default=12, metavar='N', help='images to look at, from costly to cheap (default: 12)'
    )
    parser.add_argument('--indices', type=int, nargs='+', help='these images of the test set instead')
    parser.add_argument('--files', nargs='+', metavar='IMAGE', help='image files in place of the test set')
    parser.add_argument(
        '--evaluate',
        type=int,
        default=200,
        metavar='N',
        help='images that numbers are of, evenly spread (default: 200)',
    )
    parser.add_argument(
        '--dense', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='the dense model; --cfg-options hold for all models'
    )
    parser.add_argument(
        '--against', nargs=2, action='append', default=[], metavar=('CONFIG', 'CHECKPOINT'), help='one more model'
    )
    parser.add_argument(
        '--reducer',
        action='append',
        default=[],
        metavar='NAME',
        help=f'also the dense weights with one of {", ".join(TRAINING_FREE)}',
    )
    parser.add_argument(
        '--rate', type=float, default=0.5, help='share of the tokens that leave, for a --reducer without a schedule'
    )
    parser.add_argument('--names', nargs='+', help='of the models in the page: first, dense, --against, --reducer')
    parser.add_argument('--title', default='What token reduction did', help='of the page')
    parser.add_argument('--no-speed', action='store_true', help='leave the speeds out')
    parser.add_argument('--batch-size', type=int, default=4, help='of the timing (default: 4)')
    parser.add_argument('--rounds', type=int, default=5, help='rounds of the timing, all in turn (default: 5)')
    add_run_arguments(parser)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise where an option is out of range, before anything is loaded."""
    check_one_process(args)
    for option in ('images', 'evaluate', 'batch_size', 'rounds'):
        check_integer(f'--{option.replace("_", "-")}', getattr(args, option))
    check_number('--rate', args.rate, above=0, below=1)
    check_images('--files', args.files or [])
    if args.files and args.indices:
        raise ValueError('--files and --indices: one of the two is expected')
    load_altair()


def load_all(args: argparse.Namespace) -> list[Contender]:
    """The models of the page, the dense one first."""
    cfg = load_config(args)
    files = args.files or []
    first = load_contender(cfg, args.checkpoint, Path(args.config).stem, files)
    dense = without_reduction(first)
    if args.dense:
        own = load_contender(load_config(args, args.dense[0]), args.dense[1], Path(args.dense[0]).stem, files)
        dense = replace(own, reduction=None)
    others = [] if first.reduction is None else [first]
    for config, checkpoint in args.against:
        others.append(load_contender(load_config(args, config), checkpoint, Path(config).stem, files))
    pruning = cfg.model.backbone.get('pruning')
    others += [with_reducer(dense, name, pruning, args.rate) for name in args.reducer]
    if not others:
        raise ValueError(f'{args.config} has no pruning; add --reducer NAME or --against CONFIG CHECKPOINT')
    return named([dense, *others], args)


def named(contenders: list[Contender], args: argparse.Namespace) -> list[Contender]:
    """Give them the names that were asked for, or different ones."""
    first, *others = contenders
    if args.names:
        order = [others[0], first, *others[1:]]
        if len(args.names) != len(order) or len(set(args.names)) != len(order):
            models = ', '.join(one.name for one in order)
            raise ValueError(f'--names {" ".join(args.names)}: {len(order)} different names are expected, of {models}')
        found = [replace(one, name=name) for one, name in zip(order, args.names)]
        return [found[1], found[0], *found[2:]]
    seen: dict[str, int] = {}
    for i, one in enumerate(contenders):
        seen[one.name] = seen.get(one.name, 0) + 1
        if seen[one.name] > 1:
            contenders[i] = replace(one, name=f'{one.name} ({seen[one.name]})')
    return contenders


def check_same_images(contenders: Sequence[Contender]) -> None:
    counts = {one.name: len(one.items) for one in contenders}
    if len(set(counts.values())) > 1:
        told = ', '.join(f'{name}: {count}' for name, count in counts.items())
        raise ValueError(f'the test sets of the models have different numbers of images ({told})')


def choose(args: argparse.Namespace, contenders: Sequence[Contender]) -> list[int]:
    """Images that the numbers are of."""
    check_same_images(contenders)
    total = len(contenders[0].items)
    for index in args.indices or []:
        if not 0 <= index < total:
            raise ValueError(f'--indices {index}: the test set has images 0 to {total - 1}')
    rows = list(spread(total, args.evaluate))
    return rows + [index for index in dict.fromkeys(args.indices or []) if index not in rows]


def shown(args: argparse.Namespace, summary: SetSummary, rows: Sequence[int]) -> list[int]:
    """Images to look at: of the order by cost every so many, the costliest among them."""
    order = summary.order()
    if args.indices:
        return [i for i in order if rows[i] in args.indices]
    return [order[i] for i in spread(len(order), args.images)]


@plain_errors()
def main() -> None:
    args = parse_args()
    check_args(args)
    contenders = load_all(args)
    rows = choose(args, contenders)
    print(f'{len(rows)} images through {", ".join(one.name for one in contenders)}', flush=True)
    summary = summarize(contenders, rows)
    speeds: Any = () if args.no_speed else time_contenders(contenders, args.batch_size, args.rounds)
    about = describe_machine()
    machine = f'{about["machine"]}, {about["threads"]} threads, batches of {args.batch_size}, float32'
    images = shown(args, summary, rows)
    out = write_page(args.out, args.title, contenders, summary, rows, images, speeds, machine)
    for i, one in enumerate(contenders):
        speed = f', {speeds[i][0].ratio_to(speeds[0][0]):.2f}× as fast' if speeds else ''
        print(f'{one.name}: {summary.task.metric} {summary.total(i):.1%}{speed}')
    megabytes = out.stat().st_size / 1e6
    if megabytes > 5:
        print(f'the page has {megabytes:.1f} MB; with fewer --images it is smaller', file=sys.stderr)
    print_written(out.resolve())


if __name__ == '__main__':
    main()
