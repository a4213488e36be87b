"""Time windowed attention among kept tokens against its alternatives, interleaved.

    python tools/windowed_attention.py --json results/windowed-attention.json

EVA-02-L's attention at 1536² (9216 tokens, windows of 16, 16 heads of 64 channels), as 408 tokens are pruned after
each block; which ones are kept is random. In turn, on the same queries, keys and values:

- windows: cropr_mm, among the current tokens of each window;
- global: attention among all current tokens;
- holes: whole windows, in which pruned tokens are masked;
- masked: one attention of all 9216 tokens, masked to the current tokens of the same window.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cropr_mm.benchmark.machine import check_device, describe_machine
from cropr_mm.benchmark.throughput import compare_throughput
from cropr_mm.cli.arguments import new_file, plain_errors, print_written
from cropr_mm.models.windows import Windows, attend, count_windows, window_ids, windowed_attention
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import write_json
from cropr_mm.utils.progress import track

GRID, WINDOW, HEADS, CHANNELS, RATE = (96, 96), 16, 16, 64, 408


def within(tensors: list[Tensor], windows: Windows) -> Tensor:
    query, key, value = tensors
    return windowed_attention(query, key, value, windows)


def among(tensors: list[Tensor], mask: Tensor | None = None) -> Tensor:
    query, key, value = tensors
    return attend(query, key, value, mask)


def contenders(kept: int, device: str, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Calls that give the same output for the kept tokens, but for ``global``."""
    ids = window_ids(GRID, WINDOW, device).sort().values[None]
    total, count = ids.shape[1], count_windows(GRID, WINDOW)
    rows = torch.randperm(total, device=device)[:kept].sort().values
    kept_mask = torch.zeros(total, dtype=torch.bool, device=device)
    kept_mask[rows] = True
    full = [torch.randn(1, total, HEADS, CHANNELS, device=device, dtype=dtype) for _ in range(3)]
    few = [t[:, rows] for t in full]
    windows = Windows(ids[:, rows], count, WINDOW**2, 0, kept == total)
    everyone = Windows(ids, count, WINDOW**2, 0, True)
    batch = [t.unflatten(1, (count, -1)).flatten(0, 1) for t in full]
    there = kept_mask.view(count, 1, 1, -1).expand(-1, 1, WINDOW**2, -1)
    near = (ids[0, :, None] == ids[0]) & kept_mask
    near |= torch.eye(total, dtype=torch.bool, device=device)  # a softmax over nothing is NaN
    calls: dict[str, Callable[[], Any]] = {
        'dense': partial(within, full, everyone),
        'windows': partial(within, few, windows),
        'global': partial(among, few),
        'holes': partial(among, batch, there),
        'masked': partial(among, full, near[None, None]),
    }
    # Between two kernels lie a few units in the last place.
    tolerance = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    with torch.inference_mode():
        ours = calls['windows']()
        for name in ('holes', 'masked'):
            other = calls[name]().reshape(1, total, HEADS, CHANNELS)[:, rows]
            torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)
    return calls


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--blocks', type=int, nargs='+', default=[1, 6, 12, 18, 22], help='blocks before which to time')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--json', type=new_file, metavar='OUT')
    args = parser.parse_args()
    with plain_errors():
        check_integer('--rounds', args.rounds)
        for block in args.blocks:
            check_integer('--blocks', block, 0, (GRID[0] * GRID[1] - 1) // RATE)
        check_device('--device', args.device)
    results = []
    for block in track(args.blocks, 'blocks'):
        kept = GRID[0] * GRID[1] - RATE * block
        calls = contenders(kept, args.device, getattr(torch, args.dtype))
        timings = compare_throughput(calls, 1, args.rounds, warmup=1, device=args.device)
        milliseconds = {name: 1000 / timing.images_per_second for name, timing in timings.items()}
        spread = {name: timing.spread for name, timing in timings.items()}
        results.append(dict(block=block, tokens=kept, milliseconds=milliseconds, spread=spread))
        shown = '  '.join(f'{name} {value:8.1f} ms (±{spread[name]:.0%})' for name, value in milliseconds.items())
        print(f'block {block:2}, {kept:4} tokens:  {shown}', flush=True)
    if args.json:
        settings = dict(device=args.device, dtype=args.dtype)
        write_json(args.json, dict(**describe_machine(args.device), **settings, results=results))
    print_written(args.json)


if __name__ == '__main__':
    main()
