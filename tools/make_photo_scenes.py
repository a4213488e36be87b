"""Write scenes of real pixels, photographs of CIFAR-10 on pieces of CamVid: ``make_photo_scenes.py data/photos``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cropr_mm.cli.arguments import new_folder, plain_errors
from cropr_mm.sample_data.photo_scenes import write_photo_scenes


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description='Write scenes of photographs (images, labels, COCO json).')
    parser.add_argument(
        'out', type=new_folder, help='folder to write; a complete one of the same settings is left as it is'
    )
    parser.add_argument('--cifar10', type=Path, default=Path('data/cifar10'), help='default: %(default)s')
    parser.add_argument('--camvid', type=Path, default=Path('data/camvid'), help='default: %(default)s')
    parser.add_argument('--train', type=int, default=4000, metavar='N', help='training images (default: 4000)')
    parser.add_argument('--val', type=int, default=400, metavar='N', help='validation images (default: 400)')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other images (default: 0)')
    parser.add_argument('--size', type=int, default=64, metavar='PIXELS', help='side of an image (default: 64)')
    args = parser.parse_args()
    with plain_errors((ValueError, OSError)):
        write_photo_scenes(args.out, args.cifar10, args.camvid, args.train, args.val, args.seed, args.size)
    print(f'{args.out}: {args.train} training and {args.val} validation images of {args.size} x {args.size} pixels')


if __name__ == '__main__':
    main()
