"""Compare pruners at the same budget: train each with several seeds and print the table.

    python tools/compare.py sample-seg --seeds 0 1 2
    python tools/compare.py camvid --methods pruners random-50 cropr-50 --jobs 4 --amp
    python tools/compare.py photos-seg --methods dense random --method wide='cropr-patch custom_hooks.0.ramp=0.8'
    python tools/compare.py camvid --table                      # of what is finished, without a run
    python tools/compare.py camvid --methods pareto --routing none --speed 1 4    # accuracy against measured speed

A method changes the data's config with a DifficultyPruner in one way, the same for all data: a pruner (dense, random,
variance, attention, tome, algm, expedit, oracle, cropr, nonsalient, cropr-multilabel, cropr-patch) and changes of it
(-50 and -75 prune so many percent, -stages3, -exit, -untrained, …), a cheaper dense model (dense-blocks75,
dense-patch150, …), or a group: pruners, rates, returning, cheaper, retrofit, pareto. Each run has a folder with its
config. Runs that are complete are not repeated, so an interrupted comparison resumes where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope

from cropr_mm.analysis.methods import (
    FROM_DENSE,
    GROUPS,
    apply_method,
    change,
    is_dense,
    needs_label_maps,
    own_method,
    parts_of,
)
from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.pareto import Point, draw, family_of, time_models
from cropr_mm.benchmark.pareto import table as pareto_table
from cropr_mm.cli.arguments import new_folder, plain_errors, print_written
from cropr_mm.cli.config import read_config
from cropr_mm.cli.evaluation import timed_images
from cropr_mm.cli.model import build_model
from cropr_mm.engine.checks import check_config
from cropr_mm.models.cropr_vit import fold_scorers
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import whole_file, write_json
from cropr_mm.utils.libraries import is_segmentation
from cropr_mm.utils.progress import track

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
        configs: of the dense model and of the one with a DifficultyPruner, ``{}`` being the place of the name.
        segmentation: or detection.
        groups: of methods that are compared unless others are asked for.
    """

    configs: str
    segmentation: bool
    groups: tuple[str, ...] = ('pruners', 'rates')


SEG, DET = 'fcn_{}-vit_', 'mask-rcnn_{}-vit_'
SAMPLE_GROUPS = ('pruners', 'returning', 'cheaper', 'retrofit')
DATA = {
    'sample-seg': Data(f'sample/{SEG}sample.py', True, SAMPLE_GROUPS),
    'sample-det': Data(f'sample/{DET}sample.py', False, SAMPLE_GROUPS),
    'photos-seg': Data(f'photos/{SEG}photos.py', True),
    'photos-det': Data(f'photos/{DET}photos.py', False),
    'camvid': Data(f'camvid/{SEG}camvid.py', True),
    'nuclei': Data(f'nuclei/{DET}nuclei.py', False),
}
ALIASES = {'seg': 'sample-seg', 'det': 'sample-det'}
# name in mmengine's log, name in the table, factor to percent; the first ones are measured against oracle and random
METRICS = {
    True: (('mIoU', 'mIoU', 1.0),),
    False: (('coco/bbox_mAP', 'box AP', 100.0), ('coco/segm_mAP', 'mask AP', 100.0)),
}
DETAILS = {
    True: (('object_IoU', 'object IoU', 1.0),),
    False: (('coco/bbox_mAP_s', 'small box AP', 100.0), ('coco/segm_mAP_s', 'small mask AP', 100.0)),
}
CLASS_SCORES = {True: ('IoU.{}', 1.0), False: ('coco/{}_precision', 100.0)}  # of detection the last metric's: masks


class RunError(Exception):
    """A run that failed; the message says where, and the last line of its log."""


def methods_of(data: Data, names: Iterable[str]) -> list[str]:
    """Groups spelled out, each method once. A group leaves out what does not fit the data."""
    methods: list[str] = []
    for name in names:
        group = GROUPS.get(name, (name,))
        methods += [m for m in group if data.segmentation or name not in GROUPS or not needs_label_maps(m)]
    return list(dict.fromkeys(methods))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', choices=[*DATA, *ALIASES], help='seg and det are sample-seg and sample-det')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--methods', nargs='+', metavar='METHOD', help="methods and groups; default: the data's groups")
    parser.add_argument(
        '--method',
        action='append',
        default=[],
        metavar="NAME='[METHOD] KEY=VALUE …'",
        help='also compare a method of your own: options for METHOD (default: cropr)',
    )
    parser.add_argument('--work-dir', type=new_folder, help='default: work_dirs/compare-DATA')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time; they share the cores evenly')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision; needs an accelerator')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for every run')
    parser.add_argument(
        '--routing', choices=['all', 'first', 'none'], default='all', help='seeds of which to count the tokens kept'
    )
    parser.add_argument('--table', action='store_true', help='train nothing; the table of the runs that are finished')
    parser.add_argument(
        '--speed',
        type=int,
        nargs='+',
        default=[],
        metavar='BATCH',
        help='also time the methods against one another at these batch sizes, on one of the test images',
    )
    parser.add_argument('--rounds', type=int, default=7, help='with --speed: of each method, in turn')
    args = parser.parse_args(arguments)
    args.data = ALIASES.get(args.data, args.data)
    args.work_dir = Path(args.work_dir or f'work_dirs/compare-{args.data}')
    with plain_errors():
        check_integer('--jobs', args.jobs)
        check_integer('--rounds', args.rounds)
        for batch in args.speed:
            check_integer('--speed', batch)
        for seed in args.seeds:
            check_integer('--seeds', seed, 0)
        args.own = {name: (base, options) for name, base, options in map(own_method, args.method)}
        asked = args.methods if args.methods or args.own else DATA[args.data].groups
        args.methods = list(dict.fromkeys([*methods_of(DATA[args.data], asked or ()), *args.own]))
        for method in args.methods:
            if method not in args.own:
                parts_of(method)
    return args


@functools.lru_cache(maxsize=None)
def config_file(path: Path) -> Config:
    return read_config(path)


def config_of(args: argparse.Namespace, method: str) -> Config:
    """The config of a method, apart from the seed."""
    data = DATA[args.data]
    base, options = args.own.get(method, (method, []))
    kind = 'dense' if is_dense(base) else 'cropr'
    cfg = copy.deepcopy(config_file(ROOT / 'configs' / data.configs.format(kind)))
    apply_method(cfg, base)
    change(cfg, [*options, *args.cfg_options])
    check_config(cfg)
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator  # figures are of the test split
    return cfg


def report_classes(cfg: Config) -> None:
    """Let the evaluation also log the score of each class."""
    for evaluator in ('val_evaluator', 'test_evaluator'):
        settings = cfg.get(evaluator)
        for metric in settings if isinstance(settings, (list, tuple)) else [settings]:
            kind = str((metric or {}).get('type', '')).rsplit('.', 1)[-1]
            if kind == 'IoUMetric':
                metric.type = 'ClassIoUMetric'
            elif kind == 'CocoMetric':
                metric.classwise = True
    if is_segmentation(cfg):
        imports = cfg.get('custom_imports', {}).get('imports', [])
        imports = [imports] if isinstance(imports, str) else list(imports)
        cfg.custom_imports = dict(imports=[*imports, 'cropr_mm.analysis.class_iou'], allow_failed_imports=False)


@dataclass
class Run:
    """One training.

    Attributes:
        cfg: the whole config.
        digest: of all settings that the run depends on, apart from where this clone lies.
        after: the run whose checkpoint this one starts from.
        trains: or tests that checkpoint as it is.
    """

    method: str
    seed: int
    folder: Path
    cfg: Config
    digest: str
    after: Run | None = None
    trains: bool = True

    @property
    def result_file(self) -> Path:
        return self.folder / 'result.json'


def plan_run(args: argparse.Namespace, method: str, seed: int) -> Run:
    """Work out what a run is; raises ValueError where its folder holds one with other settings."""
    cfg = config_of(args, method)
    report_classes(cfg)
    cfg.merge_from_dict({'randomness.seed': seed})
    settings = repr(cfg.to_dict()).replace(str(ROOT), '') + ('amp' if args.amp else '')
    digest = hashlib.sha256(settings.encode()).hexdigest()
    changes = parts_of(args.own.get(method, (method, []))[0])[1]
    after = plan_run(args, 'dense', seed) if FROM_DENSE.intersection(changes) else None
    folder = args.work_dir / f'{method}-{seed}'
    run = Run(method, seed, folder, cfg, digest, after, trains='untrained' not in changes)
    plan = run.folder / 'plan'
    if run.folder.is_dir() and not (plan.is_file() and plan.read_text() == digest):
        raise ValueError(
            f'{run.folder}: was run with another config or other options; remove it or choose another --work-dir'
        )
    return run


def threads_of(args: argparse.Namespace) -> int:
    """Threads of each run."""
    return int(os.environ.get('OMP_NUM_THREADS') or max(1, (os.cpu_count() or 1) // args.jobs))


def checkpoint_of(folder: Path) -> str:
    return (folder / 'last_checkpoint').read_text().strip()


DUMPING = threading.Lock()  # mmengine parses what it writes, and in Python 3.11 threads disturb each other in that


def train_and_test(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Train, unless that is done; returns the result. A run that another thread or process is at is waited for.

    Raises:
        RunError: a tool failed.
    """
    args.work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(args.work_dir / f'.{run.folder.name}.lock')  # freed when the process ends, in whatever way
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f'{run.method}, seed {run.seed}: is being run already; waiting for it', flush=True)
        lock.acquire()
    try:
        return _train_and_test(args, run)
    finally:
        lock.release()


def _train_and_test(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    if run.result_file.is_file():
        return json.loads(run.result_file.read_text())
    run.folder.mkdir(parents=True, exist_ok=True)
    with whole_file(run.folder / 'plan') as partial:
        partial.write_text(run.digest)
    config = str((run.folder / 'config.py').resolve())
    with whole_file(config) as partial, DUMPING:
        run.cfg.dump(partial)
    extra = ['--amp'] if args.amp else []
    if run.after:
        train_and_test(args, run.after)
        extra += ['--cfg-options', f'load_from={checkpoint_of(run.after.folder)}']
    start = time.monotonic()
    work_dir = str(run.folder.resolve())
    if run.trains:
        call(args, run, 'train.py', config, '--work-dir', work_dir, '--resume', *extra)
    finished = run if run.trains or run.after is None else run.after
    checkpoint = checkpoint_of(finished.folder)
    if not evaluations(run, records_of(run)):  # not trained, or cut short after the last checkpoint
        call(args, run, 'test.py', config, checkpoint, '--work-dir', work_dir)
    routing = run.folder / 'routing.json'
    pruned = run.cfg.model.backbone.get('pruning') is not None
    if pruned and args.routing != 'none' and (args.routing == 'all' or run.seed == args.seeds[0]):
        call(args, run, 'analyze_routing.py', config, checkpoint, '--json', str(routing.resolve()))
    result = dict(
        method=run.method,
        seed=run.seed,
        **read_scores(run),
        routing=json.loads(routing.read_text()) if routing.is_file() else None,
        about=about(args),
    )
    write_json(run.result_file, result)
    shown = ', '.join(f'{name} {result[key]:.1f}' for key, name, _ in METRICS[is_segmentation(run.cfg)])
    print(f'{run.method}, seed {run.seed}: {shown} ({(time.monotonic() - start) / 60:.1f} min)', flush=True)
    return result


def call(args: argparse.Namespace, run: Run, tool: str, *arguments: str) -> None:
    """Run a tool; its output goes into the run's log."""
    log = run.folder / 'output.log'
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads_of(args))}
    command = [sys.executable, str(ROOT / 'tools' / tool), *arguments]
    with log.open('a') as output:
        code = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
    if code:
        lines = log.read_text(errors='replace').strip().splitlines()
        last = lines[-1].strip() if lines else 'no output'
        raise RunError(f'{run.method}, seed {run.seed}: tools/{tool} ended with {code}: {last} (see {log})')


def records_of(run: Run) -> list[dict[str, Any]]:
    """What mmengine logged: lines of trainings, and files of tests."""
    records = []
    for pattern in ('*/vis_data/scalars.json', '*/*.json'):
        for line in (line for file in sorted(run.folder.glob(pattern)) for line in file.read_text().splitlines()):
            with contextlib.suppress(ValueError):  # a run that was killed may have left half a line
                records.append(json.loads(line))
    return records


def evaluations(run: Run, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    main = METRICS[is_segmentation(run.cfg)][0][0]
    return [record for record in records if main in record]


def read_scores(run: Run) -> dict[str, Any]:
    """Scores of the last evaluation in percent, those of the classes, and the time per iteration."""
    segmentation = is_segmentation(run.cfg)
    records = records_of(run)
    if not (found := evaluations(run, records)):
        raise RunError(f'{run.method}, seed {run.seed}: no {METRICS[segmentation][0][0]} in {run.folder}/*/*.json')
    scores = found[-1]
    result: dict[str, Any] = {
        key: scores[key] * factor
        for table in (METRICS, DETAILS)
        for key, _, factor in table[segmentation]
        if is_score(scores.get(key))
    }
    pattern, factor = CLASS_SCORES[segmentation]
    before, after = pattern.split('{}')
    result['classes'] = {
        key[len(before) : len(key) - len(after)]: value * factor
        for key, value in scores.items()
        if key.startswith(before) and key.endswith(after) and is_score(value)
    }
    if segmentation and run.cfg.get('object_classes'):
        names = list(result['classes'])
        objects = [result['classes'][name] for name in object_names(run.cfg) if name in names]
        if objects:
            result['object_IoU'] = statistics.mean(objects)
    times = [r['time'] for r in records if 'time' in r and 'loss' in r]
    result['seconds_per_iteration'] = statistics.median(times) if times else None
    return result


def is_score(value: Any) -> bool:
    """COCO says -1 where there is nothing to find, mmengine NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def object_names(cfg: Config) -> list[str]:
    """Names of the config's object_classes."""
    dataset = cfg.val_dataloader.dataset
    while dataset.get('dataset'):
        dataset = dataset.dataset
    names = (dataset.get('metainfo') or {}).get('classes')
    if names is None:  # those of the data set's class
        from mmseg.registry import DATASETS

        names = DATASETS.get(dataset.type).METAINFO['classes']
    return [names[label] for label in cfg.object_classes]


def about(args: argparse.Namespace) -> dict[str, Any]:
    return {**describe_machine(get_device()), 'threads': threads_of(args), 'jobs': args.jobs, 'amp': args.amp}


def spread(values: Iterable[float]) -> str:
    """Median and range."""
    values = sorted(values)
    return f'{statistics.median(values):.1f} ({values[0]:.1f}–{values[-1]:.1f})' if values else '–'


def table(segmentation: bool, results: list[dict[str, Any]]) -> str:
    """Markdown: one row per method, oracle and random pruning as the scale."""
    methods = list(dict.fromkeys(r['method'] for r in results))
    shown = [(key, name) for key, name, _ in DETAILS[segmentation] if any(key in r for r in results)]
    keys = [*(key for key, _, _ in METRICS[segmentation]), *(key for key, _ in shown)]
    values = {
        (method, key): [r[key] for r in results if r['method'] == method and key in r]
        for method in methods
        for key in keys
    }
    head = ['pruner']
    for _, name, _ in METRICS[segmentation]:
        head += [name, 'headroom recovered']
    head += [*(name for _, name in shown), 'object tokens kept', 'background kept']
    lines = [' | '.join(head), ' | '.join('---' for _ in head)]
    for method in methods:
        row = [method]
        for key, _, _ in METRICS[segmentation]:
            row += [spread(values[method, key]), headroom(values, method, key)]
        for key, _ in shown:
            row.append(f'{statistics.median(values[method, key]):.1f}' if values[method, key] else '–')
        routes = [r['routing'] for r in results if r['method'] == method and r['routing']]
        for part in ('object', 'background'):
            unknown = '100 %' if is_dense(method) else '–'
            row.append(f'{100 * statistics.median(kept(r[part]) for r in routes):.0f} %' if routes else unknown)
        lines.append(' | '.join(row))
    return '\n'.join(f'| {line} |' for line in lines)


def kept(shares: list[float]) -> float:
    """Share that reaches the second-to-last block: with Last Layer Fusion all are back in the last."""
    return shares[-2]


def class_table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row per class and, for each method, the median of its score and of the share of it kept."""
    methods = list(dict.fromkeys(r['method'] for r in results))
    names = list(dict.fromkeys(name for r in results for name in r['classes']))
    lines = [' | '.join(['class', *methods]), ' | '.join('---' for _ in ['', *methods])]
    for name in names:
        row = [name]
        for method in methods:
            mine = [r for r in results if r['method'] == method]
            scores = [r['classes'][name] for r in mine if name in r['classes']]
            routes = [(r['routing'] or {}).get('classes', {}).get(name) for r in mine]
            shares = [kept(route) for route in routes if route]
            cell = f'{statistics.median(scores):.1f}' if scores else '–'
            row.append(cell + (f' ({100 * statistics.median(shares):.0f} %)' if shares else ''))
        lines.append(' | '.join(row))
    return '\n'.join(f'| {line} |' for line in lines)


def headroom(values: dict[tuple[str, str], list[float]], method: str, key: str) -> str:
    """(method − random) / (oracle − random), from the medians over the seeds."""
    if not all(values.get((m, key)) for m in ('random', 'oracle', method)):
        return '–'
    low, high, own = (statistics.median(values[m, key]) for m in ('random', 'oracle', method))
    return f'{100 * (own - low) / (high - low):.0f} %' if high > low else '–'


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Write and print the tables of results."""
    order = {method: i for i, method in enumerate(args.methods)}
    results.sort(key=lambda r: (order[r['method']], r['seed']))
    text = table(DATA[args.data].segmentation, results)
    if any(r['classes'] for r in results):
        text += '\n\nScore of each class, and the share of its tokens that is kept:\n\n' + class_table(results)
    with whole_file(args.work_dir / 'table.md') as partial:
        partial.write_text(text + '\n', encoding='utf-8')
    write_json(args.work_dir / 'results.json', dict(command=' '.join(sys.argv), **shared_about(results)))
    print('\n' + text)
    accuracy = accuracies(args, results) if args.speed else {}
    models = {method: model_and_data(config_of(args, method)) for method in accuracy}
    for batch in args.speed:
        print(f'\nAccuracy against speed, batch {batch}:\n\n' + speed_table(args, accuracy, models, batch))
    print()
    curves = [f'pareto-b{batch}.{kind}' for batch in args.speed for kind in ('png', 'json')]
    print_written(*(args.work_dir / name for name in ('table.md', 'results.json', *curves)))


def model_and_data(cfg: Config) -> tuple[Any, Any]:
    """The model of a method, with initial weights, and its test images."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model: Any = build_model(cfg)
    fold_scorers(model)
    return model, DATASETS.build(cfg.test_dataloader.dataset)


def accuracies(args: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Method → its main metric with each seed."""
    key = METRICS[DATA[args.data].segmentation][0][0]
    accuracy: dict[str, list[float]] = {}
    for result in results:
        accuracy.setdefault(result['method'], []).append(result[key])
    if 'dense' not in accuracy:
        raise ValueError('--speed: no finished run of dense among the methods, which speeds are measured against')
    return accuracy


def speed_table(
    args: argparse.Namespace, accuracy: dict[str, list[float]], models: dict[str, tuple[Any, Any]], batch: int
) -> str:
    """Time the models in turn, draw accuracy against speed and write it all to files."""
    metric = METRICS[DATA[args.data].segmentation][0][1]
    timed = {method: (model, timed_images(images, model, batch)) for method, (model, images) in models.items()}
    timings, flops = time_models(timed, batch, args.rounds)
    points = [
        Point(
            method,
            timing.ratio_to(timings['dense']),
            timing.spread,
            tuple(accuracy[method]),
            flops['dense'] / flops[method],
        )
        for method, timing in timings.items()
    ]
    draw(points, args.work_dir / f'pareto-b{batch}.png', f'{args.data}, batch {batch}', metric)
    rows = [dict(p._asdict(), family=family_of(p.method), milliseconds=timings[p.method].milliseconds) for p in points]
    content = dict(
        command=' '.join(sys.argv), batch_size=batch, rounds=args.rounds, **describe_machine('cpu'), points=rows
    )
    write_json(args.work_dir / f'pareto-b{batch}.json', content)
    return pareto_table(points)


def shared_about(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Machine and versions once where they are the same for all runs, otherwise left with each."""
    first = results[0]['about']
    if any(r['about'] != first for r in results):
        return dict(results=results)
    return dict(**first, results=[{k: v for k, v in r.items() if k != 'about'} for r in results])


def finished(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of the runs that are finished, of the methods and seeds asked for."""
    files = [args.work_dir / f'{method}-{seed}' / 'result.json' for seed in args.seeds for method in args.methods]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


@plain_errors(())
def main() -> None:
    args = parse_args()
    failed = []
    if args.table:
        results = finished(args)
    else:
        # Seed by seed, so that whatever is finished first already compares all methods.
        with plain_errors():
            plan = [plan_run(args, method, seed) for seed in args.seeds for method in args.methods]
        print(f'{len(plan)} runs, {args.jobs} at a time, in {args.work_dir}', flush=True)

        def attempt(run: Run) -> dict[str, Any] | None:
            try:
                return train_and_test(args, run)
            except (RunError, OSError, ValueError) as error:
                failed.append(str(error))
                print(f'failed: {error}', flush=True)
                return None

        with ThreadPoolExecutor(args.jobs) as pool:
            results = [result for result in track(pool.map(attempt, plan), 'runs', len(plan)) if result]
    if results:
        with plain_errors():
            report(args, results)
    elif not failed:
        sys.exit(f'compare.py: error: no finished run of these methods and seeds in {args.work_dir}')
    if failed:
        sys.exit(f'compare.py: error: {len(failed)} of {len(plan)} runs failed:\n' + '\n'.join(failed))


if __name__ == '__main__':
    main()
