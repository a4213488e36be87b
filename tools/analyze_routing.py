"""Share of the tokens on objects, on background and of each class that reach each block.

    python tools/analyze_routing.py configs/sample/fcn_cropr-vit_sample.py work_dirs/demo/train/iter_600.pth
    python tools/analyze_routing.py CONFIG CHECKPOINT --against OTHER_CONFIG OTHER_CHECKPOINT

With --against also the share of one model's kept tokens that the other keeps, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from mmengine.runner import Runner

from cropr_mm.analysis.routing import routing_overlap, routing_shares
from cropr_mm.cli.arguments import add_run_arguments, new_file, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data
from cropr_mm.cli.model import load_model
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import write_json
from cropr_mm.utils.progress import track


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation or mmdetection')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--object-classes',
        type=int,
        nargs='+',
        help="labels that are objects, for segmentation (default: the config's object_classes)",
    )
    parser.add_argument('--batches', type=int, help='look at this many batches of the test set (default: all)')
    parser.add_argument(
        '--against',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another model with the same schedule; --cfg-options hold for both',
    )
    parser.add_argument('--json', type=new_file, metavar='OUT', help='also write the shares to this file')
    add_run_arguments(parser)
    return parser.parse_args()


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        if args.batches is not None:
            check_integer('--batches', args.batches)
        cfg = load_config(args)
        check_data(cfg, ['test_dataloader'])
        model = load_model(cfg, args.checkpoint)
        torch.manual_seed(0)
        loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
        count = min(len(loader), args.batches or len(loader))
        classes = loader.dataset.metainfo.get('classes', ())
        for label in args.object_classes or ():
            check_integer('--object-classes', label, 0, len(classes) - 1 if classes else None)

        def batches(title: str) -> Iterator[Any]:
            return track(islice(loader, args.batches), title, count)

        shares = routing_shares(
            model,
            batches('images'),
            args.object_classes or cfg.get('object_classes'),
            classes,
        )
        if args.against:
            config, checkpoint = args.against
            other = load_model(load_config(args, config), checkpoint)
            shares['overlap'] = routing_overlap(model, other, batches('both models'))
    print(
        f'{shares["images"]} images, {shares["object_tokens"]} tokens on objects, '
        f'{shares["background_tokens"]} on background'
    )
    rows = {group: shares[group] for group in ('object', 'background')}
    rows.update((name, row) for name, row in shares['classes'].items() if name not in rows)
    width = max(11, *map(len, rows))
    print(f'{"block":{width}}', *(f'{block:6d}' for block in range(len(shares['object']))))
    for name, row in rows.items():
        print(f'{name:{width}}', *(f'{share:6.1%}' for share in row))
    if args.against:
        print('kept by both after block', *(f'{block}: {share:.1%}' for block, share in shares['overlap'].items()))
    if args.json:
        write_json(args.json, shares)
        print_written(args.json)


if __name__ == '__main__':
    main()
