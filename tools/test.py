"""Evaluate a checkpoint with any mmsegmentation, mmdetection or mmpretrain config.

python tools/test.py configs/sample/fcn_cropr-vit_sample.py work_dirs/fcn_cropr-vit_sample/iter_600.pth
python tools/test.py CONFIG CHECKPOINT --cfg-options model.backbone.pruning.rate=10
python tools/test.py CONFIG CHECKPOINT --show-dir painted --out predictions.pkl
tools/dist_test.sh CONFIG CHECKPOINT 8
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from cropr_mm.checkpoint import check_checkpoint, load_every_parameter, weights_of
from cropr_mm.cli.arguments import add_run_arguments, new_folder, plain_errors, print_written
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data
from cropr_mm.cli.run import build_runner
from cropr_mm.utils.io import check_place
from cropr_mm.utils.libraries import is_segmentation


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmsegmentation, mmdetection or mmpretrain')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_run_arguments(parser)
    parser.add_argument(
        '--out', help='keep the predictions: mmdetection, a .pkl file; mmsegmentation, a folder of label maps'
    )
    parser.add_argument('--show-dir', type=new_folder, help='paint the predictions into this folder')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, by the config's tta_pipeline")
    return parser.parse_args()


def keep_predictions(cfg: Config, out: str) -> None:
    """Write the predictions the way the config's library does."""
    if is_segmentation(cfg):
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        check_place(out, folder=True)
        evaluators[0].output_dir = out
        evaluators[0].keep_results = True
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out={out!r}: a file that ends in .pkl is expected')
    check_place(out)
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]


def paint_predictions(cfg: Config, folder: str) -> None:
    """Switch the library's visualisation hook on."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show-dir needs the visualisation hook of the library in the config, e.g. '
            "default_hooks.visualization=dict(type='SegVisualizationHook')"
        )
    hook.draw = True
    if hook.type.startswith('Det'):
        hook.test_out_dir = os.path.abspath(folder)  # a relative one mmdet puts under the work dir, once per batch
    else:
        hook.interval = 1
        cfg.visualizer.save_dir = folder


def augment(cfg: Config) -> None:
    """Wrap the model and replace the pipeline for test-time augmentation."""
    if not (cfg.get('tta_pipeline') and cfg.get('tta_model')):
        raise ValueError('--tta needs tta_pipeline and tta_model in the config')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    model = ConfigDict(**cfg.tta_model, module=cfg.model)
    if 'data_preprocessor' in cfg.model:
        # The wrapper's replaces the model's, and without one mmengine takes the config's top-level variable for it,
        # which mmsegmentation's bases have and which need not be what the model has.
        model.data_preprocessor = cfg.model.data_preprocessor
    cfg.model = model


class CompleteCheckpoint(Hook):
    """Ends the run where a checkpoint leaves a parameter random: mmengine would log it and report a number."""

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = runner.model
        while isinstance(model, (DistributedDataParallel, BaseTTAModel)):
            model = model.module
        with plain_errors():
            load_every_parameter(model, weights_of(checkpoint, str(runner._load_from)), f'{runner._load_from}:')


@plain_errors(())
def main() -> None:
    args = parse_args()
    with plain_errors():
        cfg = load_config(args)
        if '://' not in args.checkpoint:
            check_checkpoint(args.checkpoint)
        cfg.update(load_from=args.checkpoint, resume=False)
        if args.out:
            keep_predictions(cfg, args.out)
        if args.show_dir:
            paint_predictions(cfg, args.show_dir)
        if args.tta:
            augment(cfg)
        check_data(cfg, ['test_dataloader'])
        runner = build_runner(cfg)
        runner.register_hook(CompleteCheckpoint())
    runner.test()
    if is_main_process():
        print_written(args.out, args.show_dir, cfg.work_dir)


if __name__ == '__main__':
    main()
