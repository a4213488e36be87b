"""Write a trained model as one graph, for torch.export (.pt2) or ONNX (.onnx), in batches of any size.

    python tools/export.py CONFIG CHECKPOINT model.onnx
    python tools/export.py CONFIG CHECKPOINT model.onnx --size 512 1024 --images photo.jpg other.jpg
    python tools/export.py CONFIG CHECKPOINT model.onnx --open-size
    python tools/export.py CONFIG CHECKPOINT model.pt2 --output logits

The graph takes images (B, 3, H, W) float32 from 0 to 255, as mmcv loads them (BGR), and normalises them itself.
Segmentors give label maps (or logits), classifiers logits, detectors what their head says before boxes are chosen.
The file is written only if it says what the model says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cropr_mm.cli.arguments import add_run_arguments, new_file, plain_errors
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_images
from cropr_mm.cli.model import load_model
from cropr_mm.export import OUTPUTS, Exportable, check_output, export
from cropr_mm.models.cropr_vit import find_backbone
from cropr_mm.utils.checks import check_integer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config that the model was trained with')
    parser.add_argument('checkpoint', help='checkpoint of that training, or one that tools/deploy.py made of it')
    parser.add_argument('out', type=new_file, help='file to write, ending in .pt2 or .onnx')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='of the images (default: img_size of the backbone)'
    )
    parser.add_argument('--open-size', action='store_true', help='for images of any size (--size: of the example)')
    parser.add_argument('--output', choices=OUTPUTS, default='labels', help='of a segmentor (default: labels)')
    parser.add_argument(
        '--images', nargs='+', default=[], help='image files to compare file and model on (default: random ones)'
    )
    add_run_arguments(parser)
    return parser.parse_args()


def load_images(files: list[str], size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) as float32 from 0 to 255, brought to the size."""
    if not files:
        return interpolate(torch.rand(2, 3, 8, 8) * 255, size, mode='bilinear').round()
    import mmcv

    arrays = [mmcv.imresize(mmcv.imread(file), size[::-1]) for file in files]
    return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float()


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        check_output(args.out)
        for side in args.size or ():
            check_integer('--size', side)
        check_images('--images', args.images)
        cfg = load_config(args)
        model = load_model(cfg, args.checkpoint)
        backbone = find_backbone(model)
        size = tuple(args.size or (side * backbone.patch_size for side in backbone.grid))
        torch.manual_seed(0)
        images = load_images(args.images, size)
        report = export(Exportable(model, args.output), images, args.out, args.open_size)
    shown = 'any size' if args.open_size else f'{size[0]} × {size[1]} pixels'
    print(
        f'{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB, for images of {shown} in '
        f'batches of any size; {report.share:.2%} of the values differ from the model, the largest by '
        f'{report.difference:.1g}.\noperators: {" ".join(report.operators)}'
    )


if __name__ == '__main__':
    main()
