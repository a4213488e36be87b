"""Train a model from any mmsegmentation, mmdetection or mmpretrain config.

python tools/train.py configs/sample/fcn_cropr-vit_sample.py
python tools/train.py CONFIG --work-dir work_dirs/mine --resume
tools/dist_train.sh CONFIG 8 --amp
"""

from __future__ import annotations

import argparse

from mmengine.dist import is_main_process

from cropr_mm.cli.arguments import add_run_arguments, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data, check_weights
from cropr_mm.cli.run import build_runner, has_accelerator, set_resume
from cropr_mm.engine import CroprHook
from cropr_mm.engine.checks import TrainingChecks, config_warnings
from cropr_mm.engine.finite_loss import FiniteLoss


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation, mmdetection or mmpretrain')
    add_run_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint, or without a value from the last one in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision; needs an accelerator')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during the training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by batch size / the config's auto_scale_lr.base_batch_size",
    )
    return parser.parse_args()


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        cfg = load_config(args)
        if args.no_validate:
            cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
        if args.amp:
            if not has_accelerator():
                raise ValueError('--amp: mixed precision needs an accelerator, and torch finds none; train without it')
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if args.auto_scale_lr:
            if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
                raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
            cfg.auto_scale_lr.enable = True
        set_resume(cfg, args.resume)
        check_data(cfg, ['train_dataloader', 'val_dataloader'])
        check_weights(cfg)
        runner = build_runner(cfg)
    for message in config_warnings(cfg):
        runner.logger.warning(message)
    runner.register_hook(FiniteLoss())
    if not any(isinstance(hook, CroprHook) for hook in runner.hooks):
        runner.register_hook(TrainingChecks())
    runner.train()
    if is_main_process():
        print_written(cfg.work_dir)


if __name__ == '__main__':
    main()
