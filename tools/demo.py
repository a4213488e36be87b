"""From nothing to a trained, measured and illustrated pruned model, in minutes on a CPU.

    python tools/demo.py seg        # a Cropr ViT with a linear head of mmsegmentation
    python tools/demo.py det        # the same backbone under a Mask R-CNN of mmdetection

Makes the sample data, trains, evaluates, times the model against the dense one on the same weights, draws which
tokens were pruned, and writes all figures to work_dirs/demo/summary.json (work_dirs/demo-det for det).
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from cropr_mm.analysis.pictures import draw_pictures, take_pictures
from cropr_mm.benchmark.flops import pruned_ratio, tokens_per_block
from cropr_mm.benchmark.throughput import Timing, compare_throughput
from cropr_mm.cli.arguments import add_run_arguments, plain_errors
from cropr_mm.cli.config import load_config
from cropr_mm.cli.inputs import check_data
from cropr_mm.cli.model import build_model, load_model
from cropr_mm.cli.run import build_runner
from cropr_mm.sample_data import write_sample_data
from cropr_mm.utils.io import write_json

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = dict(seg='fcn_cropr-vit_sample.py', det='mask-rcnn_cropr-vit_sample.py')
# key in summary.json → key in the metrics of mmengine, factor to percent
METRICS = dict(seg=dict(miou=('mIoU', 1)), det=dict(bbox_map=('coco/bbox_mAP', 100), segm_map=('coco/segm_mAP', 100)))
TIMED_IMAGES = 16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=sorted(CONFIGS))
    parser.add_argument(
        '--data-root',
        type=Path,
        default=ROOT / 'data' / 'sample',
        help='the sample data; made there if it is not there (default: data/sample)',
    )
    parser.add_argument('--pictures', type=int, default=4, help='images to draw (default: 4)')
    parser.add_argument('--rounds', type=int, default=10, help='rounds of timing (default: 10)')
    add_run_arguments(parser)
    args = parser.parse_args()
    args.config = str(ROOT / 'configs' / 'sample' / CONFIGS[args.task])
    args.work_dir = args.work_dir or str(ROOT / 'work_dirs' / ('demo' if args.task == 'seg' else f'demo-{args.task}'))
    return args


def say(step: int, text: str) -> None:
    print(f'\n[{step}/5] {text}', flush=True)


def use_data(cfg: Config, root: Path) -> None:
    """Read the sample data from another folder than the config's."""
    for key in ('train', 'val', 'test'):
        cfg[f'{key}_dataloader'].dataset.data_root = str(root)
        evaluator = cfg.get(f'{key}_evaluator') or {}
        if 'ann_file' in evaluator:
            evaluator['ann_file'] = str(root / 'annotations' / Path(evaluator['ann_file']).name)


def train(cfg: Config) -> tuple[dict[str, float], float]:
    """Train from the beginning, then evaluate: metrics, and minutes of training."""
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    runner = build_runner(cfg)
    start = time.monotonic()
    runner.train()
    minutes = (time.monotonic() - start) / 60
    say(3, 'evaluate')
    return runner.test(), minutes


def time_models(cfg: Config, checkpoint: str, rounds: int) -> tuple[dict[str, Timing], dict[str, Timing], Any]:
    """Time the whole model and the backbone alone, dense and pruned in turn, on images of the test set."""
    cropr: Any = load_model(cfg, checkpoint)
    dense_cfg = copy.deepcopy(cfg)
    dense_cfg.model.backbone.pruning = None
    dense: Any = build_model(dense_cfg)
    weights = cropr.state_dict()
    dense.load_state_dict({key: weights[key] for key in dense.state_dict()})
    cropr.backbone.switch_to_deploy()
    models = dict(dense=dense, cropr=cropr)
    dataset = Runner.build_dataloader(cfg.test_dataloader).dataset
    batch = pseudo_collate([dataset[i % len(dataset)] for i in range(TIMED_IMAGES)])
    whole, backbone = {}, {}
    for name, model in models.items():
        data = model.data_preprocessor(batch, False)
        whole[name] = partial(model, **data, mode='predict')
        backbone[name] = partial(model.backbone, data['inputs'])
    return (compare_throughput(whole, TIMED_IMAGES, rounds), compare_throughput(backbone, TIMED_IMAGES, rounds), cropr)


def draw(model: Any, cfg: Config, folder: Path, count: int) -> list[str]:
    """One picture with all images, and one for each."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    pictures = [
        p
        for i in range(min(count, len(loader.dataset)))
        for p in take_pictures(model, pseudo_collate([loader.dataset[i]]))
    ]
    sheets = [('tokens.png', pictures)] + [(f'tokens_{i}.png', [p]) for i, p in enumerate(pictures)]
    return [
        str(draw_pictures(rows, folder / name, model.backbone.schedule.blocks, loader.dataset.metainfo))
        for name, rows in sheets
    ]


def table(summary: dict[str, Any], task: str) -> str:
    scores = '   '.join(f'{key} {summary[key]:.1f}' for key in METRICS[task])
    lines = [
        f'{scores}   ({summary["train_minutes"]:.1f} min of training)',
        '',
        f'{"images/s":16}{"dense":>10}{"Cropr":>10}{"speed-up":>10}',
        f'{"whole model":16}{summary["images_per_second_dense"]:10.1f}{summary["images_per_second"]:10.1f}'
        f'{summary["speedup"]:9.2f}×',
        f'{"backbone":16}{summary["backbone_images_per_second_dense"]:10.1f}'
        f'{summary["backbone_images_per_second"]:10.1f}{summary["backbone_speedup"]:9.2f}×',
        '',
        'tokens per block: '
        + ' '.join(map(str, summary['tokens_per_block']))
        + f'   ({summary["tokens_pruned_ratio"]:.0%} pruned in front of the last block, which sees all again)',
        f'picture: {summary["pictures"][0]}',
    ]
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    out = Path(args.work_dir).absolute()
    args.work_dir = str(out / 'train')
    with plain_errors():
        cfg = load_config(args)
        if args.data_root.is_dir() and any(args.data_root.iterdir()):
            say(1, f'sample data: {args.data_root} is there')
        else:
            say(1, f'make the sample data in {args.data_root}')
            write_sample_data(args.data_root)
        use_data(cfg, args.data_root.absolute())
        check_data(cfg, ['train_dataloader', 'test_dataloader'])
    # What an earlier demo left must not be taken for the result of this one.
    (out / 'summary.json').unlink(missing_ok=True)
    for folder in ('train', 'pictures'):
        shutil.rmtree(out / folder, ignore_errors=True)
    say(2, f'train {Path(args.config).name} for {cfg.train_cfg.max_iters} iterations')
    metrics, minutes = train(cfg)
    checkpoint = (out / 'train' / 'last_checkpoint').read_text().strip()

    say(4, 'time the model against the dense one, in turn, on the same weights')
    torch.manual_seed(0)
    whole, backbone, model = time_models(cfg, checkpoint, args.rounds)
    say(5, 'draw which tokens were pruned')
    pictures = draw(model, cfg, out / 'pictures', args.pictures)

    height, width = (model.backbone.patch_size * side for side in model.backbone.grid)
    summary: dict[str, Any] = {key: float(metrics[name]) * factor for key, (name, factor) in METRICS[args.task].items()}
    summary.update(
        tokens_per_block=tokens_per_block(model.backbone, height, width),
        tokens_pruned_ratio=pruned_ratio(model.backbone, height, width),
        images_per_second=whole['cropr'].images_per_second,
        images_per_second_dense=whole['dense'].images_per_second,
        speedup=whole['cropr'].ratio_to(whole['dense']),
        backbone_images_per_second=backbone['cropr'].images_per_second,
        backbone_images_per_second_dense=backbone['dense'].images_per_second,
        backbone_speedup=backbone['cropr'].ratio_to(backbone['dense']),
        pictures=pictures,
        checkpoint=checkpoint,
        config=args.config,
        train_minutes=minutes,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    write_json(out / 'summary.json', summary)
    print('\n' + table(summary, args.task) + f'\nsummary: {out / "summary.json"}')


if __name__ == '__main__':
    main()
