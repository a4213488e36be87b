"""One checkpoint at several pruning rates: accuracy against images/s, as a picture and a table.

    python tools/sweep_rates.py configs/sample/fcn_cropr-vit_sample.py work_dirs/demo/train/iter_600.pth \\
        --rates 8 16 20
    python tools/sweep_rates.py CONFIG CHECKPOINT --rates 0.04 0.08 --metric mIoU --out sweep

Rate 0, which prunes nothing, is always part of it. Nothing is trained: the weights are the same at all rates (a model
that was trained dense may be better than these are at rate 0), and the scorers are folded as for deployment. After
each evaluation both files are written anew, so one that is interrupted leaves what it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from cropr_mm.benchmark.rates import (
    RatePoint,
    choose_metrics,
    draw_tradeoff,
    parse_rate,
    schedules_for,
    time_rates,
    write_csv,
)
from cropr_mm.checkpoint import load_strictly, read_checkpoint
from cropr_mm.cli.arguments import add_run_arguments, new_folder, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.evaluation import check_one_process, evaluate, timed_images
from cropr_mm.cli.inputs import check_data
from cropr_mm.cli.run import build_runner
from cropr_mm.models import Schedule
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_integer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation, mmdetection or mmpretrain, with pruning')
    parser.add_argument('checkpoint', help='checkpoint file, of training or from tools/deploy.py')
    parser.add_argument(
        '--rates',
        nargs='+',
        required=True,
        metavar='RATE',
        help='tokens per module, or with values below 1 their share',
    )
    parser.add_argument('--metric', nargs='+', default=[], metavar='NAME', help='what to draw, e.g. mIoU or bbox_mAP')
    parser.add_argument(
        '--out', type=new_folder, metavar='DIR', help='folder for sweep.png and sweep.csv (default: the work dir)'
    )
    parser.add_argument('--images', type=int, help='batch size of the timing (default: that of test_dataloader)')
    parser.add_argument('--rounds', type=int, default=5, help='rounds of the timing, all rates in turn')
    add_run_arguments(parser)
    return parser.parse_args()


def prepare(cfg: Config, args: argparse.Namespace, rates: Iterable[float]) -> tuple[Runner, Any, dict[float, Schedule]]:
    """A runner whose model has the checkpoint's weights, ready for inference, and the schedule of each rate."""
    check_one_process(args)
    check_integer('--rounds', args.rounds)
    if args.images is not None:
        check_integer('--images', args.images)
    weights, _ = read_checkpoint(args.checkpoint)
    check_data(cfg, ['test_dataloader'])
    cfg.update(load_from=None, resume=False)
    runner = build_runner(cfg)
    backbone = find_backbone(runner.model)
    schedules = schedules_for(backbone, rates)
    load_strictly(runner.model, weights, args.checkpoint)
    backbone.switch_to_deploy()
    return runner, runner.model.eval(), schedules


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        rates = list(dict.fromkeys([0, *map(parse_rate, args.rates)]))
        cfg = load_config(args)
        out = Path(args.out or cfg.work_dir)
        runner, model, schedules = prepare(cfg, args, rates)
        backbone = find_backbone(model)
        count = args.images or cfg.test_dataloader.get('batch_size', 1)
        points = time_rates(
            model, schedules, timed_images(runner.test_loop.dataloader.dataset, model, count), count, args.rounds
        )
    done: list[RatePoint] = []
    for rate, schedule in schedules.items():
        backbone.schedule = schedule
        points[rate].metrics = evaluate(runner)
        done.append(points[rate])
        with plain_errors():
            metrics = choose_metrics(done[0].metrics, args.metric)
        table = write_csv(done, out / 'sweep.csv')
        picture = draw_tradeoff(done, metrics, out / 'sweep.png', f'{Path(args.config).stem}, batch {count}')
    print('\n' + ''.join(f'{title:>14}' for title in ('rate', 'pruned', 'images/s', '× rate 0', *metrics)))
    for point in done:
        print(
            f'{point.rate:14g}{point.tokens_pruned:14.1%}{point.images_per_second:14.2f}'
            f'{point.images_per_second / done[0].images_per_second:14.2f}'
            + ''.join(f'{point.metrics[name]:14.4g}' for name in metrics)
        )
    print_written(picture, table)


if __name__ == '__main__':
    main()
