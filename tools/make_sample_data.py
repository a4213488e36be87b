"""Write the sample data set: ``python tools/make_sample_data.py data/sample``."""

from __future__ import annotations

import argparse

from cropr_mm.cli.arguments import new_folder, plain_errors
from cropr_mm.sample_data import write_sample_data


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description='Write the generated sample data set (images, labels, COCO json).')
    parser.add_argument(
        'out', type=new_folder, help='folder to write; a complete one of the same settings is left as it is'
    )
    parser.add_argument('--train', type=int, default=4000, metavar='N', help='training images (default: 4000)')
    parser.add_argument('--val', type=int, default=400, metavar='N', help='validation images (default: 400)')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other images (default: 0)')
    parser.add_argument('--size', type=int, default=96, metavar='PIXELS', help='side of an image (default: 96)')
    args = parser.parse_args()
    with plain_errors():
        out = write_sample_data(args.out, args.train, args.val, args.seed, args.size)
    print(f'{out}: {args.train} training and {args.val} validation images of {args.size} x {args.size} pixels')


if __name__ == '__main__':
    main()
