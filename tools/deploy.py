"""Write a checkpoint for inference: scorers folded into one vector each, no auxiliary parts, no optimizer.

    python tools/deploy.py configs/sample/fcn_cropr-vit_sample.py work_dirs/demo/train/iter_600.pth deployed.pth
    python tools/test.py   configs/sample/fcn_cropr-vit_sample.py deployed.pth \\
        --cfg-options model.backbone.pruning.deploy=True

The file is written only if the folded model gives the same output as the trained one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cropr_mm.checkpoint import check_checkpoint, load_strictly, read_checkpoint, save_weights
from cropr_mm.checkpoint.whole_model import SUFFIXES
from cropr_mm.cli.arguments import add_run_arguments, new_file, plain_errors
from cropr_mm.cli.config import load_config
from cropr_mm.cli.model import build_model
from cropr_mm.deploy import deployed_config, fold_into
from cropr_mm.utils.checks import check_suffix
from cropr_mm.version import __version__

# Of what mmengine writes beside the weights; the rest belongs to the training.
META = ('dataset_meta', 'epoch', 'iter', 'mmengine_version')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config that the model was trained with')
    parser.add_argument('checkpoint', help='checkpoint of that training')
    parser.add_argument('out', type=new_file, help=f'file to write, ending in {" or ".join(SUFFIXES)}')
    parser.add_argument(
        '--no-ema', action='store_true', help='of a training with EMAHook, take the weights that were not averaged'
    )
    add_run_arguments(parser)
    return parser.parse_args()


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        out = check_suffix(args.out, SUFFIXES, 'out')
        cfg = load_config(args)
        local = '://' not in args.checkpoint
        if local and check_checkpoint(args.checkpoint).resolve() == out.resolve():
            raise ValueError(f'out={args.out!r} is the checkpoint itself, and what training needs would be lost')
        deployed_cfg, options = deployed_config(cfg)
        weights, meta = read_checkpoint(args.checkpoint, ema=not args.no_ema)
        trained = build_model(cfg)
        load_strictly(trained, weights, args.checkpoint)
        deployed = build_model(deployed_cfg)
        difference = fold_into(trained, deployed)
        about: dict[str, Any] = {key: meta[key] for key in META if key in meta}
        about.update(cfg=deployed_cfg.pretty_text, cropr_mm_version=__version__)
        state = deployed.state_dict()
        save_weights(out, state, about)
    scorers = sum(v.numel() * v.element_size() for k, v in state.items() if '.pruners.' in f'.{k}')
    before = f' (before: {_megabytes(Path(args.checkpoint).stat().st_size)})' if local else ''
    print(
        f'{out}: {_megabytes(out.stat().st_size)}{before}, of which scorers {scorers / 1e3:.1f} kB; '
        f'features differ by {difference:.1g} at most. It loads with\n  --cfg-options {" ".join(options)}'
    )


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.2f} MB'


if __name__ == '__main__':
    main()
