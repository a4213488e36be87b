"""Find the pruning schedule for a speed, not for a number of tokens: on this device, with this batch.

    python tools/plan.py --config configs/sample/fcn_cropr-vit_sample.py --target-speedup 1.3 --batch-size 1
    python tools/plan.py --config CONFIG --whole-model --latency-ms 40 --batch-size 1 --out planned.py
    python tools/plan.py --arch eva02-large --target-speedup 1.4 --device cuda --dtype bfloat16 --cuda-graph

Times the model at ten schedules and works out what a block costs at each number of tokens, and what a pruner costs.
Of the plans that are predicted to be fast enough, with 1, 2, 3, … evenly spaced pruners, it takes the one that keeps
the most tokens in the end (or up to 5 % less, with fewer pruners), and times that one against the dense model. Where
pruners cost more than they save, it says so.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from mmengine.config import Config

from cropr_mm.benchmark.machine import describe_machine
from cropr_mm.benchmark.planner import (
    LEAST,
    Costs,
    Plan,
    best_plan,
    fastest_plan,
    measure_costs,
    plans_for,
    time_schedules,
)
from cropr_mm.benchmark.variants import LEARNED, build_variants
from cropr_mm.cli.arguments import new_file, plain_errors, print_written
from cropr_mm.cli.config import merge_options, read_config
from cropr_mm.cli.timed_model import (
    add_model_arguments,
    add_setting_arguments,
    build_timed_model,
    described,
    read_model_config,
    setting_of,
    timed_batch,
)
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_number, check_suffix
from cropr_mm.utils.io import whole_file, write_json
from cropr_mm.utils.libraries import register_library

NOISE = 0.05
"""Distance between measured and explained times above which a plan is not to be relied on."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--target-speedup', type=float, metavar='TIMES', help='over the dense model, such as 1.5')
    target.add_argument('--latency-ms', type=float, metavar='MS', help='milliseconds per batch')
    add_model_arguments(parser.add_argument_group('what'))
    add_setting_arguments(parser.add_argument_group('how'), 5, 'how often each schedule is timed, in turn')
    parser.add_argument('--out', type=new_file, metavar='CONFIG', help='also write the config with the plan in it')
    parser.add_argument('--json', type=new_file, metavar='OUT', help='also write the figures to this file')
    return parser.parse_args()


def with_plan(cfg: Config, keep: dict[int, float]) -> Config:
    """The config with ``pruning.keep`` in place of its own plan."""
    cfg = Config(cfg.to_dict())
    pruning = cfg.model.backbone.pruning.to_dict()
    plan = {key: value for key, value in pruning.items() if key not in ('rate', 'target_ratio', 'blocks', 'keep')}
    cfg.model.backbone.pruning = {**plan, 'keep': keep}
    return cfg


def print_plans(costs: Costs, plans: dict[int, Plan], chosen: Plan) -> None:
    print(f'{"stages":>6} {"kept":>6} {"predicted":>10}  after blocks')
    for stages, plan in plans.items():
        blocks = ', '.join(map(str, plan.keep))
        mark = ' ←' if plan is chosen else ''
        print(f'{stages:>6} {plan.kept:>6} {costs.dense / plan.seconds:>9.2f}×  {blocks}{mark}')


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        setting = setting_of(args, least_rounds=1)
        if args.target_speedup is not None:
            check_number('--target-speedup', args.target_speedup, above=1)
        else:
            check_number('--latency-ms', args.latency_ms, above=0)
        cfg = read_model_config(args)
        original = read_config(args.config) if args.config else None
        pruning: dict[str, Any] = dict(cfg.model.backbone.get('pruning') or {})
        if args.out:
            check_suffix(args.out, ['.py'], '--out')
        if args.out and not (original and pruning):
            raise ValueError(f'--out={args.out!r}: a --config with model.backbone.pruning is expected')
        if args.whole_model:
            register_library(cfg)
        torch.manual_seed(0)
        pruning = {key: value for key, value in pruning.items() if key in ('pruner', 'round_to', 'fusion')}
        models = build_variants(
            lambda own: build_timed_model(cfg, args.whole_model, own, args.device),
            {**pruning, 'target_ratio': 0.5},  # a pruner after every block
            ('dense', LEARNED),
        )
        for model in models.values():
            model.to(setting.device, setting.dtype)
            if setting.compile_blocks:
                find_backbone(model).compile_blocks()
        dense, pruned = models.values()
        batch = timed_batch(args, cfg, 2)
        height, width = batch['inputs'].shape[-2:]
        batch['inputs'] = batch['inputs'].to(setting.dtype)
        machine = describe_machine(args.device)
        print(
            f'{args.config or args.arch}, {"whole model" if args.whole_model else "backbone"}: {height} × {width}, '
            f'batch {args.batch_size}, {args.dtype}; {machine["machine"]} ({machine["threads"]} threads), '
            f'torch {torch.__version__}',
            flush=True,
        )
        costs = measure_costs(dense, pruned, batch, setting)
        target = costs.dense / args.target_speedup if args.target_speedup else args.latency_ms / 1000
        print(f'dense: {1000 * costs.dense:.4g} ms, to reach: {1000 * target:.4g} ms\n', flush=True)
        if costs.misfit > NOISE:
            print(
                f'the times disagree by up to {costs.misfit:.0%}: the machine is busy, or more --rounds are needed\n',
                file=sys.stderr,
            )
        if target >= costs.dense:
            sys.exit('plan.py: the dense model is as fast as that: do not prune for speed')
        plans = plans_for(costs, target)
        if not plans:
            fastest = fastest_plan(costs)
            gain = costs.dense / fastest.seconds
            most = f'with {LEAST:.0%} of the tokens kept the most is {gain:.2f}×, after blocks {list(fastest.keep)}'
            sys.exit(f'plan.py: no plan reaches that: {most}' + ('' if gain > 1 else ': do not prune here'))
        plan = best_plan(plans)
        print_plans(costs, plans, plan)
        before, after = time_schedules(dense, pruned, [costs.shape.schedule(plan.keep)], batch, setting)
        print(
            f'\npredicted {costs.dense / plan.seconds:.2f}×, {1000 * plan.seconds:.4g} ms; '
            f'measured {after.ratio_to(before):.2f}×, {after.milliseconds:.4g} ms (dense {before.milliseconds:.4g}; '
            f'spread {max(before.spread, after.spread):.1%})\n\n'
            f'model.backbone.pruning = dict(pruner=…, keep={plan.keep})'
        )
        if args.out and original:
            merge_options(original, args.cfg_options)
            with whole_file(args.out) as partial:
                with_plan(original, plan.keep).dump(partial)
    if args.json:
        report = dict(
            **described(args, (height, width)),
            keep=plan.keep,
            tokens_per_block=plan.tokens,
            misfit=costs.misfit,
            predicted=costs.dense / plan.seconds,
            measured=after.ratio_to(before),
            spread=max(before.spread, after.spread),
            stages={stages: dict(keep=p.keep, kept=p.kept) for stages, p in plans.items()},
        )
        write_json(args.json, report)
    print_written(args.out, args.json)


if __name__ == '__main__':
    main()
