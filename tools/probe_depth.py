"""Does a segmentor need its depth? Accuracy of a linear classifier of its tokens before the first and after each block.

    python tools/probe_depth.py configs/photos/fcn_dense-vit_photos.py                # pre-trained weights alone
    python tools/probe_depth.py CONFIG CHECKPOINT --images 400

Where it stops growing early, it does not matter which tokens a pruner keeps. Nothing is pruned here.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from mmengine.runner import Runner

from cropr_mm.analysis.depth import probe_depth
from cropr_mm.cli.arguments import add_run_arguments, new_file, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data, check_weights
from cropr_mm.cli.model import build_model, load_model
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import write_json
from cropr_mm.utils.libraries import is_segmentation
from cropr_mm.utils.progress import track


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file (default: what init_cfg of the config names)')
    parser.add_argument('--images', type=int, default=400, help='of the training and of the test set, each')
    parser.add_argument('--json', type=new_file, metavar='OUT', help='also write the accuracies to this file')
    add_run_arguments(parser)
    args = parser.parse_args()
    with plain_errors():
        check_integer('--images', args.images)
        cfg = load_config(args)
        if not is_segmentation(cfg):
            raise ValueError(
                f'{args.config}: default_scope={cfg.get("default_scope")!r}; label maps (mmseg) are expected'
            )
        check_data(cfg, ['train_dataloader', 'test_dataloader'])
        if args.checkpoint:
            model: Any = load_model(cfg, args.checkpoint)
        else:
            check_weights(cfg)
            model = build_model(cfg)
            model.init_weights()
        torch.manual_seed(0)
        loaders = {}
        for key in ('train_dataloader', 'test_dataloader'):
            settings = cfg[key]
            settings.dataset.indices = args.images
            settings.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
            settings.sampler = dict(type='DefaultSampler', shuffle=False)
            loaders[key] = Runner.build_dataloader(settings, seed=0)
        found = probe_depth(
            model,
            track(loaders['train_dataloader'], 'training images'),
            track(loaders['test_dataloader'], 'test images'),
            cfg.get('object_classes') or (),
        )
    print(f'{"before block":12}', *(f'{block:6d}' for block in range(len(found['all']) - 1)), '  head')
    for name, row in found.items():
        print(f'{name:12}', *(f'{share:6.1%}' for share in row))
    if args.json:
        write_json(args.json, found)
        print_written(args.json)


if __name__ == '__main__':
    main()
