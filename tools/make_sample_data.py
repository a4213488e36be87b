"""Write the sample data set: ``python tools/make_sample_data.py data/sample``."""

from __future__ import annotations

import argparse
import sys

from cropr_mm.sample_data import write_sample_data


def main() -> int:
    parser = argparse.ArgumentParser(description='Write the generated sample data set (images, labels, COCO json).')
    parser.add_argument('out', help='folder to write; a complete one of the same settings is left as it is')
    parser.add_argument('--train', type=int, default=4000, metavar='N', help='training images (default: 4000)')
    parser.add_argument('--val', type=int, default=400, metavar='N', help='validation images (default: 400)')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other images (default: 0)')
    parser.add_argument('--size', type=int, default=96, metavar='PIXELS', help='side of an image (default: 96)')
    args = parser.parse_args()
    try:
        out = write_sample_data(args.out, args.train, args.val, args.seed, args.size)
    except (ValueError, OSError) as error:
        print(f'make_sample_data: {error}', file=sys.stderr)
        return 1
    print(f'{out}: {args.train} training and {args.val} validation images of {args.size} x {args.size} pixels')
    return 0


if __name__ == '__main__':
    sys.exit(main())
