"""Time exported models against one another, in turn: .onnx in ONNX Runtime, .pt2 in PyTorch, on the CPU.

    python tools/time_exports.py dense.onnx pruned.onnx --batch-size 4
    python tools/time_exports.py model.onnx model.pt2 --rounds 9 --json exports.json
    python tools/time_exports.py dense.onnx pruned.onnx --size 512 1024

The first is what the others compare with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.throughput import compare_throughput
from cropr_mm.cli.arguments import new_file, plain_errors, print_written
from cropr_mm.export import load_export
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='what tools/export.py wrote')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='of the images, for files that take any size'
    )
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5, help='how often each is timed; the median counts')
    parser.add_argument('--threads', type=int, help='CPU threads (default: as PyTorch chooses)')
    parser.add_argument('--json', type=new_file, metavar='OUT', help='also write the figures to this file')
    return parser.parse_args()


def image_size(file: str, size: tuple[int | None, ...], asked: Sequence[int] | None) -> tuple[int, ...]:
    """H and W of the images that a file is timed on.

    Raises:
        ValueError: the file takes images of another size than the one that is asked for, or of any and none is.
    """
    if None in size and asked is None:
        raise ValueError(f'{file} takes images of any size; say with --size H W which to time')
    if asked is not None and any(side not in (None, wanted) for side, wanted in zip(size, asked)):
        raise ValueError(f'--size={asked[0]} {asked[1]}: {file} takes images of {size[0]} × {size[1]}')
    return tuple(asked or (side for side in size if side is not None))


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        check_integer('--batch-size', args.batch_size)
        check_integer('--rounds', args.rounds)
        if args.threads is not None:
            torch.set_num_threads(check_integer('--threads', args.threads))
        for side in args.size or ():
            check_integer('--size', side)
        for file in args.files:
            if not Path(file).is_file():
                raise FileNotFoundError(f'{file}: no such file')
        loaded = {file: load_export(file) for file in args.files}
        sizes = {file: image_size(file, size, args.size) for file, (_, size) in loaded.items()}
        calls = {
            file: partial(run, torch.rand(args.batch_size, 3, *sizes[file]) * 255) for file, (run, _) in loaded.items()
        }
    timings = compare_throughput(calls, args.batch_size, args.rounds)
    first = timings[args.files[0]]
    width = max(map(len, timings))
    print(f'{"":{width}} {"ms":>9} {"images/s":>9} {"×":>6} {"spread":>7}')
    for file, timing in timings.items():
        print(
            f'{file:{width}} {timing.milliseconds:>9.1f} {timing.images_per_second:>9.2f} '
            f'{timing.ratio_to(first):>6.2f} {timing.spread:>7.1%}'
        )
    if args.json:
        figures = {
            file: dict(milliseconds=t.milliseconds, ratio=t.ratio_to(first), spread=t.spread, size=sizes[file])
            for file, t in timings.items()
        }
        write_json(args.json, dict(batch_size=args.batch_size, rounds=args.rounds, **describe_machine(), files=figures))
        print_written(args.json)


if __name__ == '__main__':
    main()
