"""A finished dense model made faster: which reducer of tokens, at which rate, loses how much on your images?

    python tools/speedup.py configs/photos/fcn_dense-vit_photos.py work_dirs/fcn_dense-vit_photos/iter_300.pth
    python tools/speedup.py CONFIG CHECKPOINT --reducers tome variance --rates 0.4 0.6 --stages 2 3 --images 500
    python tools/speedup.py CONFIG CHECKPOINT --retrofitted RETROFITTED --metric mIoU
    python tools/speedup.py CONFIG CHECKPOINT --distil 0.6 --distil-iters 500

Nothing is trained: reducers without parameters work on the weights as they are. All are timed in turn in one run, and
evaluated on the same images of the validation set (the test set where there is none). After each evaluation all files
are written anew, so one that is interrupted leaves what it has. With --distil the dense model then teaches the model
with fewer tokens on the images of train_dataloader; no label is read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from torch import nn

from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.rates import RatePoint, choose_metrics, draw_tradeoff, time_reductions, write_csv
from cropr_mm.benchmark.speedup import (
    BUDGETS,
    Candidate,
    Retrofitted,
    backbone_name,
    choose_reducers,
    fastest_within,
    list_candidates,
    points_lost,
)
from cropr_mm.benchmark.variants import TRAINING_FREE
from cropr_mm.checkpoint import load_every_parameter, load_strictly, read_checkpoint
from cropr_mm.cli.arguments import add_run_arguments, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.distillation import distil, with_pruning
from cropr_mm.cli.evaluation import check_one_process, evaluate, timed_images, use_few_images, validate_as_test
from cropr_mm.cli.inputs import check_data
from cropr_mm.cli.run import build_runner
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_integer, check_number, is_type
from cropr_mm.utils.io import write_json
from cropr_mm.utils.progress import track

DENSE = 'dense'
NOISE = 0.1
"""Spread of a timing above which a difference between two speeds may be none."""
HEAD = (
    f'{"reducer, after":28} {"rate":>5} {"pruned":>7} {"images/s":>9} {"speed":>7} {"spread":>7} {"metric":>9} '
    f'{"lost":>7}'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation, mmdetection or mmpretrain, with a CroprViT')
    parser.add_argument('checkpoint', help='checkpoint file of the dense model')
    parser.add_argument(
        '--reducers', nargs='+', default=[], metavar='NAME', help=f'of {", ".join(TRAINING_FREE)} (default: all)'
    )
    parser.add_argument(
        '--rates',
        nargs='+',
        type=float,
        default=[0.3, 0.5, 0.7, 0.86],
        metavar='SHARE',
        help='shares of the patch tokens that leave in the end (default: 0.3 0.5 0.7 0.86)',
    )
    parser.add_argument(
        '--stages',
        nargs='*',
        type=int,
        default=[3],
        metavar='N',
        help='besides reducing after every block, after N evenly spaced ones (default: 3)',
    )
    parser.add_argument('--retrofitted', metavar='CHECKPOINT', help='also the learned pruners of this one')
    parser.add_argument('--images', type=int, default=200, metavar='N', help='images to evaluate on (default: 200)')
    parser.add_argument('--metric', metavar='NAME', help='what may be lost, e.g. mIoU, bbox_mAP or top1')
    parser.add_argument('--batch-size', type=int, help='of the timing (default: that of the data loader)')
    parser.add_argument('--rounds', type=int, default=5, help='rounds of the timing, all in turn')
    parser.add_argument(
        '--distil',
        nargs='+',
        type=float,
        default=[],
        metavar='SHARE',
        help='at each of these rates let the dense model teach what loses least there',
    )
    parser.add_argument(
        '--distil-reducers', nargs='+', default=[], metavar='NAME', help='each of these is taught instead'
    )
    parser.add_argument('--distil-iters', type=int, default=400, metavar='N', help='training steps (default: 400)')
    parser.add_argument('--distil-lr', type=float, default=1e-4, metavar='RATE', help='learning rate (default: 1e-4)')
    add_run_arguments(parser)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError where an option is out of range."""
    check_one_process(args)
    for option in ('images', 'rounds', 'distil_iters', 'batch_size'):
        value = getattr(args, option)
        if value is not None:
            check_integer(f'--{option.replace("_", "-")}', value)
    check_number('--distil-lr', args.distil_lr, above=0)
    for option in ('rates', 'distil'):
        for rate in getattr(args, option):
            check_number(f'--{option}', rate, above=0, below=1)
    known = [*choose_reducers(args.reducers), *(['retrofitted'] if args.retrofitted else [])]
    unknown = [name for name in args.distil_reducers if name not in known]
    if unknown:
        raise ValueError(f'--distil-reducers {" ".join(unknown)}: of {", ".join(known)} is expected')
    args.distil, args.distil_reducers = list(dict.fromkeys(args.distil)), list(dict.fromkeys(args.distil_reducers))
    args.rates = sorted({*args.rates, *args.distil})


def prepare(cfg: Config, args: argparse.Namespace) -> Runner:
    """A runner whose model is dense, has the checkpoint's weights and is ready for inference."""
    backbone = cfg.model.get('backbone') or {}
    if not is_type(backbone, 'CroprViT'):
        raise ValueError(f"model.backbone.type={backbone.get('type')!r}; 'CroprViT' is expected")
    cfg = with_pruning(cfg, None)
    validate_as_test(cfg)
    weights, _ = read_checkpoint(args.checkpoint)
    check_data(cfg, ['test_dataloader', *(['train_dataloader'] if args.distil else [])])
    cfg.update(load_from=None, resume=False, log_level='WARNING')
    runner = build_runner(cfg)
    if any(name.startswith(f'{backbone_name(runner.model)}pruners.') for name in weights):
        raise ValueError(
            f'{args.checkpoint} has pruners; that of a dense model is expected (tools/sweep_rates.py runs trained '
            'pruners at several rates; those of a retrofit are given as --retrofitted)'
        )
    load_strictly(runner.model, weights, args.checkpoint)
    runner.model.eval()
    return runner


def candidates_for(cfg: Config, model: nn.Module, args: argparse.Namespace) -> list[Candidate]:
    """The dense model and all that may be tried; what does not fit is told on stderr."""
    backbone = find_backbone(model)
    own = cfg.model.backbone.get('pruning') or {}
    settings = {key: own[key] for key in ('round_to', 'fusion') if own.get(key, 'cross_attention') != 'cross_attention'}
    plans = args.rates, args.stages
    found, skipped = list_candidates(backbone, choose_reducers(args.reducers), *plans, settings, args.checkpoint)
    if args.retrofitted:
        retrofitted = Retrofitted(*read_checkpoint(args.retrofitted), model, args.retrofitted)
        own, pruner = retrofitted.settings, {'retrofitted': retrofitted.pruner}
        more, reasons = list_candidates(backbone, pruner, *plans, own, args.retrofitted, retrofitted.load)
        found, skipped = found + more, {**skipped, **reasons}
    for series, reason in skipped.items():
        print(f'{series}: left out ({reason})', file=sys.stderr)
    if not found:
        raise ValueError('no reducer fits the model, so there is nothing to compare')
    return [Candidate(DENSE, 0, None, None, args.checkpoint), *found]


class Report:
    """What has been measured, in three files that are written anew after each evaluation.

    Args:
        args: of the command line.
        out: folder.
        images: evaluated.
        batch_size: of the timing.
    """

    def __init__(self, args: argparse.Namespace, out: Path, images: int, batch_size: int) -> None:
        self.out, self.named = out, [args.metric] if args.metric else []
        self.title = f'{Path(args.config).stem}: {images} images, timed in batches of {batch_size}'
        self.about = dict(config=args.config, checkpoint=args.checkpoint, images=images, batch_size=batch_size)
        self.done: list[tuple[Candidate, RatePoint]] = []
        self.taught: list[Path] = []
        self.metric = ''

    @property
    def dense(self) -> RatePoint:
        return self.done[0][1]

    def lost(self, point: RatePoint) -> float:
        return points_lost(point, self.dense, self.metric)

    def best(self, budget: float) -> tuple[Candidate, RatePoint] | None:
        """What is fastest of all that lose at most so many points."""
        found = fastest_within([point for _, point in self.done], self.dense, self.metric, budget)
        return next(((candidate, point) for candidate, point in self.done if point is found), None)

    def add(self, candidate: Candidate, point: RatePoint) -> None:
        if not self.done:
            self.metric = choose_metrics(point.metrics, self.named)[0]
        self.done.append((candidate, point))
        points = [point for _, point in self.done]
        write_csv(points, self.out / 'speedup.csv')
        draw_tradeoff(points, [self.metric], self.out / 'speedup.png', self.title)
        rows = [self._row(*row) for row in self.done]
        best = {f'{budget:g}': self._row(*found) for budget in BUDGETS for found in [self.best(budget)] if found}
        report = dict(
            **self.about, metric=self.metric, **describe_machine(get_device()), measured=rows, best_within=best
        )
        write_json(self.out / 'speedup.json', report)

    def _row(self, candidate: Candidate, point: RatePoint) -> dict[str, Any]:
        return dict(
            series=candidate.series,
            rate=candidate.rate,
            pruning=candidate.pruning,
            checkpoint=candidate.checkpoint,
            tokens_pruned=point.tokens_pruned,
            images_per_second=point.images_per_second,
            spread=point.spread,
            speedup=point.images_per_second / self.dense.images_per_second,
            points_lost=self.lost(point),
            metrics=point.metrics,
        )


def measure(runner: Runner, candidate: Candidate, report: Report, point: RatePoint) -> None:
    """Evaluate one candidate with the weights that the model has, and print a line."""
    find_backbone(runner.model).reduction = candidate.reduction
    torch.manual_seed(0)  # of random pruning
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's evaluation prints tables
        point.metrics = evaluate(runner)
    with plain_errors():
        report.add(candidate, point)
    print_row(report, point)


def print_row(report: Report, point: RatePoint) -> None:
    speed = point.images_per_second
    print(
        f'{point.series:28} {point.rate:5g} {point.tokens_pruned:7.1%} {speed:9.2f} '
        f'{speed / report.dense.images_per_second:6.2f}× {point.spread:7.1%} {point.metrics[report.metric]:9.4g} '
        f'{report.lost(point):+7.2f}',
        flush=True,
    )


def print_best(report: Report, has_pruning: bool) -> None:
    """The fastest within each budget, with what to write into the config."""
    told = None
    for budget in BUDGETS:
        found = report.best(budget)
        print(f'\nAt most {budget:g} points of {report.metric} lost: ', end='')
        if found is None:
            print('nothing is faster than the dense model')
            continue
        candidate, point = found
        speed = point.images_per_second / report.dense.images_per_second
        print(f'{speed:.2f}× with {candidate.series} at {candidate.rate:g} ({report.lost(point):.2f} lost)')
        if candidate is told:
            print('  (the same)')
            continue
        told = candidate
        print(textwrap.indent(config_lines(candidate.pruning or {}, has_pruning), '  '))
        if candidate.checkpoint != report.about['checkpoint']:
            print(f'  with the checkpoint {candidate.checkpoint}')


def config_lines(pruning: dict[str, Any], has_pruning: bool) -> str:
    """What to write into a config that inherits the dense one, or has it as its own."""
    parts = [f'{key}={_written(value)}' for key, value in pruning.items()]
    if has_pruning:
        parts.insert(0, '_delete_=True')
    return f'model = dict(backbone=dict(pruning=dict({", ".join(parts)})))'


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={_written(part)}" for key, part in value.items())})'
    return repr(value)


def chosen_for_teaching(report: Report, rate: float, reducers: list[str]) -> list[tuple[Candidate, RatePoint]]:
    """What loses least at a rate: of all, or of each of these reducers."""
    same = [row for row in report.done if row[0].rate == rate]
    groups = [[row for row in same if row[0].series.startswith(f'{name}, ')] for name in reducers] or [same]
    return [min(group, key=lambda row: report.lost(row[1])) for group in groups if group]


def teach(
    cfg: Config, runner: Runner, report: Report, args: argparse.Namespace, candidate: Candidate, point: RatePoint
) -> None:
    """Let the dense model teach a candidate, and measure the student."""
    assert candidate.pruning is not None
    rate, reducer = candidate.rate, candidate.series.partition(', ')[0]
    file = report.out / f'distilled-{reducer}-{rate:g}.pth'
    print(
        f'\n{candidate.series} at {rate:g} learns from the dense model in {args.distil_iters} steps: {file}', flush=True
    )
    report.taught.append(distil(cfg, candidate.pruning, candidate.checkpoint, args.distil_iters, args.distil_lr, file))
    weights, _ = read_checkpoint(str(file))
    series = f'{candidate.series}, distilled'
    prefix = f'{backbone_name(runner.model)}pruners.'
    reduction = find_backbone(runner.model).build_reduction(candidate.pruning)
    reduction.pruners.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    for pruner in reduction.pruners.values():
        pruner.switch_to_deploy()
    find_backbone(runner.model).reduction = None
    load_every_parameter(runner.model, weights, str(file))
    own = replace(candidate, series=series, reduction=reduction, checkpoint=str(file))
    measure(runner, own, report, replace(point, series=series, metrics={}))


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        check_args(args)
        cfg = load_config(args)
        runner = prepare(cfg, args)
        model = runner.model
        candidates = candidates_for(cfg, model, args)
        images = use_few_images(runner, args.images)
        batch_size = args.batch_size or runner.test_loop.dataloader.batch_size or 1
        batch = timed_images(runner.test_loop.dataloader.dataset, model, batch_size)
        print(f'timing {len(candidates)} ways in turn, {args.rounds} rounds, batch {batch_size} …', flush=True)
        reductions = {i: candidate.reduction for i, candidate in enumerate(candidates)}
        timed = time_reductions(model, reductions, batch, batch_size, args.rounds)
    spread = max(timing.spread for timing, _ in timed.values())
    if spread > NOISE:
        print(
            f'speeds vary by up to {spread:.0%} from round to round: the machine is busy, or more --rounds are needed',
            file=sys.stderr,
        )
    report = Report(args, Path(cfg.work_dir), images, batch_size)
    print(f'evaluating on {images} images …\n\n{HEAD}', flush=True)
    for i, candidate in enumerate(track(candidates, 'evaluating')):
        timing, pruned = timed[i]
        point = RatePoint(candidate.rate, timing.images_per_second, timing.spread, pruned, series=candidate.series)
        measure(runner, candidate, report, point)
    for row in [row for rate in args.distil for row in chosen_for_teaching(report, rate, args.distil_reducers)]:
        with plain_errors():
            teach(cfg, runner, report, args, *row)
    print_best(report, bool(cfg.model.backbone.get('pruning')))
    print()
    print_written(*(report.out / f'speedup.{kind}' for kind in ('json', 'csv', 'png')), *report.taught)


if __name__ == '__main__':
    main()
