"""Draw after which block each token was pruned, next to prediction and ground truth.

python tools/visualize_tokens.py CONFIG CHECKPOINT --out tokens.png              # from the test set
python tools/visualize_tokens.py CONFIG CHECKPOINT --indices 3 14 15 --out tokens.png
python tools/visualize_tokens.py CONFIG CHECKPOINT --image photo.jpg --out tokens.png
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from cropr_mm.analysis.pictures import draw_pictures, take_pictures
from cropr_mm.cli.arguments import add_run_arguments, new_picture, plain_errors
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data, check_images, items_of_files
from cropr_mm.cli.model import load_model
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.progress import track


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation or mmdetection')
    parser.add_argument('checkpoint', help='checkpoint file')
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        '--indices',
        type=int,
        nargs='+',
        default=[0, 1, 2, 3],
        help='images of the test set, one row each (default: the first four)',
    )
    source.add_argument('--image', nargs='+', help='image files instead')
    parser.add_argument('--out', type=new_picture, default='tokens.png', help='picture to write (default: tokens.png)')
    parser.add_argument('--pixels', type=int, default=280, help='width of a panel (default: 280)')
    add_run_arguments(parser)
    return parser.parse_args()


def dataset_inputs(cfg: Config, indices: list[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Inputs of the test set, and its classes and palette."""
    check_data(cfg, ['test_dataloader'])
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    for index in indices:
        if not 0 <= index < len(dataset):
            raise ValueError(f'--indices {index}: the test set has images 0 to {len(dataset) - 1}')
    return [dataset[index] for index in indices], dataset.metainfo


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        check_integer('--pixels', args.pixels)
        cfg = load_config(args)
        check_images('--image', args.image or [])
        model = load_model(cfg, args.checkpoint)
        schedule = find_backbone(model).schedule
        if args.image:
            inputs, meta = items_of_files(cfg, args.image), getattr(model, 'dataset_meta', {})
        else:
            inputs, meta = dataset_inputs(cfg, args.indices)
        torch.manual_seed(0)
        batches = (pseudo_collate([one]) for one in track(inputs, 'images'))
        pictures = [picture for batch in batches for picture in take_pictures(model, batch)]
        out = draw_pictures(pictures, args.out, schedule.blocks if schedule else [], meta, args.pixels)
    print(f'{len(pictures)} images drawn to {out}')


if __name__ == '__main__':
    main()
