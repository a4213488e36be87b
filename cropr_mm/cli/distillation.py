"""From a dense checkpoint to one of a model with fewer tokens, by mmengine's Runner and without labels."""

from __future__ import annotations

from logging import Logger
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..checkpoint import save_weights
from .run import build_runner


def with_pruning(cfg: Config, pruning: dict[str, Any] | None) -> Config:
    """A copy of the config whose backbone has another ``pruning``."""
    cfg = Config(cfg.to_dict())
    cfg.model.backbone.pruning = pruning
    return cfg


def distil(cfg: Config, pruning: dict[str, Any], checkpoint: str, iters: int, lr: float, out: str | Path) -> Path:
    """Train the model of a config with ``pruning`` to give what it gives without (:class:`~cropr_mm.Distilled`).

    Args:
        cfg: of the model; images, batch size and augmentations are those of its ``train_dataloader``.
        pruning: of the student's backbone.
        checkpoint: of the dense model.
        iters: training steps, with AdamW.
        lr: learning rate, which rises for a twentieth of the steps and falls to 0.
        out: file for the weights of the student, as training writes them. Logs go to a folder of the same name.
    """
    out = Path(out)
    student = with_pruning(cfg, pruning)
    training = _training(student, checkpoint, iters, lr, out)
    runner = build_runner(training)
    _set_level(runner.logger, 'INFO')  # from here on: what a runner logs as it is built is long
    runner.train()
    _set_level(runner.logger, 'WARNING')  # evaluators use the last logger of the process
    meta = dict(
        dataset_meta=runner.train_dataloader.dataset.metainfo, cfg=student.pretty_text, iter=runner.iter, distilled=True
    )
    return save_weights(out, runner.model.student.state_dict(), meta)


def _set_level(logger: Logger, level: str) -> None:
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)


def _training(student: Config, checkpoint: str, iters: int, lr: float, out: Path) -> Config:
    cfg = Config(student.to_dict())
    model = dict(cfg.model)
    preprocessor = cfg.pop('data_preprocessor', None)
    if preprocessor is not None:  # mmpretrain's configs have it beside the model
        model.setdefault('data_preprocessor', preprocessor)
    for key in ('runner_type', 'strategy', 'auto_scale_lr', 'model_wrapper_cfg'):
        cfg.pop(key, None)
    for kind in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{kind}_{part}'] = None
    warmup = iters // 20
    rise = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup)] if warmup else []
    settings = dict(
        model=ConfigDict(type='Distilled', student=model, checkpoint=checkpoint),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr, weight_decay=0.0)),
        param_scheduler=[
            *rise,
            dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=iters),
        ],
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=max(iters // 20, 1)),
            param_scheduler=dict(type='ParamSchedulerHook'),
            sampler_seed=dict(type='DistSamplerSeedHook'),
            checkpoint=None,
        ),
        custom_hooks=None,
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        load_from=None,
        resume=False,
        work_dir=str(out.with_suffix('')),
        experiment_name=out.with_suffix('').name,
    )
    for key, value in settings.items():  # Config.update would merge
        cfg[key] = value
    return cfg
