"""How many of the tokens on objects, and of those on background, reach each block.

python tools/analyze_routing.py configs/sample/fcn_cropr-vit_sample.py work_dirs/demo/train/iter_1200.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import islice

import torch
from mmengine.runner import Runner

from cropr_mm.analysis.routing import routing_shares
from cropr_mm.engine.launch import add_run_arguments, check_data, load_config, load_model, plain_errors
from cropr_mm.files import write_json


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
    parser.add_argument('--json', metavar='OUT', help='also write the shares to this file')
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with plain_errors():
        cfg = load_config(args)
        check_data(cfg, ['test_dataloader'])
        model = load_model(cfg, args.checkpoint)
        torch.manual_seed(0)
        batches: Iterable = islice(Runner.build_dataloader(cfg.test_dataloader, seed=0), args.batches)
        shares = routing_shares(model, batches, args.object_classes or cfg.get('object_classes'))
    print(
        f'{shares["images"]} images, {shares["object_tokens"]} tokens on objects, '
        f'{shares["background_tokens"]} on background'
    )
    print('block      ', *(f'{block:6d}' for block in range(len(shares['object']))))
    for group in ('object', 'background'):
        print(f'{group:11}', *(f'{share:6.1%}' for share in shares[group]))
    if args.json:
        write_json(args.json, shares)


if __name__ == '__main__':
    main()
