"""What tools that evaluate one model in several ways share: the images, the metrics, one batch to time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, SupportsFloat

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner


def check_one_process(args: argparse.Namespace) -> None:
    """Raise ValueError where a launcher would start several processes."""
    if args.launcher != 'none':
        raise ValueError(f'--launcher {args.launcher}: speeds compare on one device; run it without')


def evaluate(runner: Runner) -> dict[str, float]:
    """Metrics of the runner's model, as its evaluator gives them."""
    return {name: float(value) for name, value in runner.test().items() if isinstance(value, SupportsFloat)}


def timed_images(dataset: Any, model: Any, count: int) -> dict[str, Any]:
    """The first image of a data set several times, after the data preprocessor: ``inputs`` and ``data_samples``.

    Images of a data set may differ in size, and how many tokens leave does not depend on what is in them.
    """
    return model.data_preprocessor(pseudo_collate([dataset[0]] * count), False)


def validate_as_test(cfg: Config) -> None:
    """Let the runner's test use the validation set and its evaluator, where the config has them.

    What is chosen by a result belongs on the validation set, and some test sets have no labels.
    """
    if cfg.get('val_dataloader') and cfg.get('val_evaluator'):
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    if not (cfg.get('test_dataloader') and cfg.get('test_evaluator')):
        raise ValueError(
            'the config has neither val_dataloader and val_evaluator nor test_dataloader and '
            'test_evaluator; labelled images are expected'
        )
    cfg.test_cfg = cfg.get('test_cfg') or dict(type='TestLoop')


class Images:
    """A few images of a data set of mmengine."""

    def __init__(self, dataset: Any, rows: Sequence[int]) -> None:
        self.dataset, self.rows, self.metainfo = dataset, rows, dataset.metainfo

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[self.rows[i]]


def use_few_images(runner: Runner, count: int) -> int:
    """Let the runner test on at most ``count`` images, spread evenly over its test set; returns how many there are.

    COCO's metrics count the objects of those images alone.
    """
    loop = runner.test_loop
    dataset = loop.dataloader.dataset
    rows = spread(len(dataset), count)
    loader = {**runner.cfg.test_dataloader, 'dataset': Images(dataset, rows)}
    loop.dataloader = runner.build_dataloader(loader, seed=0)
    for metric in loop.evaluator.metrics:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = [dataset.get_data_info(row)['img_id'] for row in rows]
    return len(rows)


def spread(total: int, count: int) -> Sequence[int]:
    """At most ``count`` of the rows 0 … total - 1, evenly spaced."""
    return [i * total // count for i in range(count)] if count < total else range(total)
