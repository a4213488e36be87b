"""Compare pruners at the same budget: train each sample config with several seeds and print the table.

    python tools/compare.py seg --seeds 0 1 2
    python tools/compare.py det --seeds 0 1 2 --methods dense random

A method is a config in configs/sample, or such a config with a few options (VARIANTS). Runs that are complete are not
repeated, so an interrupted comparison resumes where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.cli.arguments import plain_errors
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import write_json

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {'seg': 'fcn_{}-vit_sample.py', 'det': 'mask-rcnn_{}-vit_sample.py'}
PRUNERS = ('dense', 'oracle', 'cropr', 'random', 'variance', 'attention', 'nonsalient')
BLOCKS = 'model.backbone.pruning.blocks=[0,1,2,3,4,5]'  # where Last Layer Fusion has its pruners
# name → the config behind it and what is changed in it; ways to bring tokens back, and no curriculum
RETURNING = {
    'cropr-no-curriculum': ('cropr', ('custom_hooks.0.ramp=0',)),
    'cropr-exit': ('cropr', ('model.backbone.pruning.fusion=None', BLOCKS)),
    'cropr-zero': ('cropr', ('model.backbone.pruning.fusion=None', BLOCKS, '{neck}.fill=zero')),
    'cropr-mask-token': (
        'cropr',
        ('model.backbone.pruning.fusion=None', BLOCKS, '{neck}.fill=mask_token', '{neck}.embed_dim=128'),
    ),
}
# cheaper auxiliary sides, for segmentation
CHEAPER = {
    'cropr-half': ('cropr', ('model.backbone.pruning.aux_share=0.5',)),
    'cropr-patch-half': ('cropr-patch', ('model.backbone.pruning.aux_share=0.5',)),
    'cropr-patch-stride2': ('cropr-patch', ('model.backbone.pruning.pruner.aux_head.query_stride=2',)),
    'cropr-patch-stride4': ('cropr-patch', ('model.backbone.pruning.pruner.aux_head.query_stride=4',)),
}
VARIANTS = {**RETURNING, **CHEAPER}
METHODS = {
    'seg': (*PRUNERS, 'cropr-multilabel', 'cropr-patch', *RETURNING, *CHEAPER, 'cropr-retrofit'),
    'det': (*PRUNERS, 'cropr-multilabel', *RETURNING, 'cropr-retrofit'),
}
NECKS = {'seg': 'model.neck', 'det': 'model.neck.0'}  # where TokenReinsertion stands
AFTER = {'cropr-retrofit': 'dense'}  # starts from the checkpoint of that method with the same seed
# name in mmengine's log, name in the table, factor to percent
METRICS = {
    'seg': (('mIoU', 'mIoU', 1.0),),
    'det': (('coco/bbox_mAP', 'box AP', 100.0), ('coco/segm_mAP', 'mask AP', 100.0)),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=sorted(CONFIGS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--methods', nargs='+', help='names in configs/sample; default: all of the task')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/compare-<task>')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time; they share the cores evenly')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for every run')
    args = parser.parse_args()
    args.methods = args.methods or METHODS[args.task]
    args.work_dir = args.work_dir or Path('work_dirs') / f'compare-{args.task}'
    for method in args.methods:
        if not config_of(args.task, method).is_file():
            known = ', '.join(METHODS[args.task])
            parser.error(f'--methods {method}: there is no {config_of(args.task, method)}; known are {known}')
    return args


# mmengine reads one config at a time: where it looks up packages, threads disturb each other.
READING = threading.Lock()
LOCKS: dict[tuple[str, int], threading.Lock] = defaultdict(threading.Lock)


def config_of(task: str, method: str) -> Path:
    return ROOT / 'configs' / 'sample' / CONFIGS[task].format(VARIANTS.get(method, (method,))[0])


def options_of(args: argparse.Namespace, method: str, seed: int) -> list[str]:
    changes = [change.format(neck=NECKS[args.task]) for change in VARIANTS.get(method, ('', ()))[1]]
    return [f'randomness.seed={seed}', *changes, *args.cfg_options]


def digest(args: argparse.Namespace, method: str, seed: int) -> str:
    """Of all settings that a run depends on, apart from where this clone lies."""
    with READING:
        config = repr(Config.fromfile(str(config_of(args.task, method))).to_dict()).replace(str(ROOT), '')
    return hashlib.sha256('\n'.join([config, *options_of(args, method, seed)]).encode()).hexdigest()


def check_folder(args: argparse.Namespace, method: str, seed: int) -> None:
    """Raise ValueError where an earlier run had other settings."""
    folder = args.work_dir / f'{method}-{seed}'
    plan = folder / 'plan'
    if folder.is_dir() and not (plan.is_file() and plan.read_text() == digest(args, method, seed)):
        raise ValueError(
            f'{folder}: was run with another config or other --cfg-options; remove it or choose another --work-dir'
        )


def threads_of(args: argparse.Namespace) -> int:
    """Threads of each run."""
    return int(os.environ.get('OMP_NUM_THREADS') or max(1, (os.cpu_count() or 1) // args.jobs))


def checkpoint_of(folder: Path) -> str:
    return (folder / 'last_checkpoint').read_text().strip()


def train_and_test(args: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Train one config with one seed, unless that is done; returns its result."""
    with LOCKS[method, seed]:  # a run that another thread is at runs once
        return _train_and_test(args, method, seed)


def _train_and_test(args: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    folder = args.work_dir / f'{method}-{seed}'
    result_file = folder / 'result.json'
    if result_file.is_file():
        return json.loads(result_file.read_text())
    options = options_of(args, method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'plan').write_text(digest(args, method, seed))
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads_of(args))}
    config, log = str(config_of(args.task, method)), folder / 'output.log'
    if method in AFTER:
        train_and_test(args, AFTER[method], seed)
        options.append(f'load_from={checkpoint_of(args.work_dir / f"{AFTER[method]}-{seed}")}')

    def call(tool: str, *arguments: str) -> None:
        command = [sys.executable, str(ROOT / 'tools' / tool), *arguments, '--cfg-options', *options]
        with log.open('a') as output:
            code = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
        if code:
            raise RuntimeError(f'{method}, seed {seed}: tools/{tool} ended with {code}; see {log}')

    start = time.monotonic()
    call('train.py', config, '--work-dir', str(folder.resolve()), '--resume')
    checkpoint = checkpoint_of(folder)
    routing = folder / 'routing.json'
    if method != 'dense':
        call('analyze_routing.py', config, checkpoint, '--json', str(routing.resolve()))
    records = [json.loads(line) for file in sorted(folder.glob('*/vis_data/scalars.json')) for line in file.open()]
    scores = [r for r in records if METRICS[args.task][0][0] in r][-1]
    times = [r['time'] for r in records if 'time' in r and 'loss' in r]
    result = dict(
        method=method,
        seed=seed,
        **{key: scores[key] * factor for key, _, factor in METRICS[args.task]},
        seconds_per_iteration=statistics.median(times),
        routing=json.loads(routing.read_text()) if routing.is_file() else None,
    )
    write_json(result_file, result)
    shown = ', '.join(f'{name} {result[key]:.1f}' for key, name, _ in METRICS[args.task])
    print(f'{method}, seed {seed}: {shown} ({(time.monotonic() - start) / 60:.1f} min)', flush=True)
    return result


def spread(values: Iterable[float]) -> str:
    """Median and range."""
    values = sorted(values)
    return f'{statistics.median(values):.1f} ({values[0]:.1f}–{values[-1]:.1f})'


def table(task: str, results: list[dict[str, Any]]) -> str:
    """Markdown: one row per method, oracle and random pruning as the scale."""
    methods = list(dict.fromkeys(r['method'] for r in results))
    values = {
        (method, key): [r[key] for r in results if r['method'] == method]
        for method in methods
        for key, _, _ in METRICS[task]
    }
    kept = ('objects kept', 'background kept')
    head = ['pruner', *(c for _, name, _ in METRICS[task] for c in (name, 'headroom recovered')), *kept]
    lines = [' | '.join(head), ' | '.join('---' for _ in head)]
    for method in methods:
        row = [method]
        for key, _, _ in METRICS[task]:
            row += [spread(values[method, key]), headroom(values, method, key)]
        routes = [r['routing'] for r in results if r['method'] == method and r['routing']]
        for part in ('object', 'background'):
            row.append(f'{100 * statistics.median(r[part][-2] for r in routes):.0f} %' if routes else '100 %')
        lines.append(' | '.join(row))
    return '\n'.join(f'| {line} |' for line in lines)


def headroom(values: dict[tuple[str, str], list[float]], method: str, key: str) -> str:
    """(method − random) / (oracle − random), from the medians over the seeds."""
    if ('random', key) not in values or ('oracle', key) not in values:
        return '–'
    low, high, own = (statistics.median(values[m, key]) for m in ('random', 'oracle', method))
    return f'{100 * (own - low) / (high - low):.0f} %' if high > low else '–'


def main() -> None:
    args = parse_args()
    # Seed by seed, so that whatever is finished first already compares all methods.
    plan = [(method, seed) for seed in args.seeds for method in args.methods]
    with plain_errors():
        check_integer('--jobs', args.jobs)
        for run in plan:
            check_folder(args, *run)
    print(f'{len(plan)} runs, {args.jobs} at a time, in {args.work_dir}', flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: train_and_test(args, *run), plan))
    results.sort(key=lambda r: args.methods.index(r['method']))
    text = table(args.task, results)
    (args.work_dir / 'table.md').write_text(text + '\n')
    about = {**describe_machine(), 'threads': threads_of(args)}
    write_json(args.work_dir / 'results.json', dict(command=' '.join(sys.argv), **about, results=results))
    print('\n' + text + f'\n\nwritten to {args.work_dir}: table.md, results.json')


if __name__ == '__main__':
    main()
