"""Token pictures, tokens per block and shares of classes kept, in the training log."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ..analysis.pictures import pictures_of, render_picture
from ..analysis.routing import (
    Recording,
    Routed,
    exits_of_all,
    exits_of_classes,
    has_pixel_labels,
    record_prediction,
)
from ..models.cropr_vit import find_backbone
from ..utils.checks import check_integer
from .checks import unwrap


@HOOKS.register_module()
class TokenVisualizationHook(Hook):
    """Writes what is pruned in validation (and in testing) to the visualizer's backends.

    It looks at some batches as the model predicts them, without a prediction of its own, and writes with the iteration
    as the step:

    - a picture of each image, ``val_tokens_{image}.png`` (MLflow reads the format from the name): image, tokens,
      prediction, ground truth;
    - ``val/cropr.tokens.{block}``, patch tokens of an image (or of a sliding window) that are kept after the block;
    - ``val/cropr.kept.{class}``, share of the class's patches that are never pruned, where there are label maps or
      masks; mean over the images that it looked at.

    In testing the names begin with ``test``. Of several processes the main one writes, from the images that it gets.
    Which tokens are kept is that of the weights that predict, also with an EMAHook. The losses of the scorers are in
    the log by :class:`CroprHook`.

    Args:
        draw: whether to write pictures; False writes the numbers alone.
        interval: look at each ``interval``-th batch, the first among them.
        pixels: width of each of the four parts of a picture.
        backend_args: of mmengine's file backend, for images that are not on a disk of this machine.

    Raises:
        ValueError: a setting out of range, or a model without a CroprViT.
    """

    priority = 'NORMAL'

    def __init__(
        self, draw: bool = True, interval: int = 50, pixels: int = 280, backend_args: dict[str, Any] | None = None
    ) -> None:
        self.draw = draw
        self.interval = check_integer('TokenVisualizationHook.interval', interval)
        self.pixels = check_integer('TokenVisualizationHook.pixels', pixels, 50)
        self.backend_args = backend_args
        self._open = ExitStack()
        self._recording: Recording | None = None
        self._tokens: list[Tensor] = []
        self._classes: list[Tensor] = []
        self._blocks: list[int] = []
        self._warned = False

    def before_run(self, runner: Runner) -> None:
        try:
            find_backbone(unwrap(runner.model))
        except ValueError as error:
            raise ValueError(f'TokenVisualizationHook: {error} or take the hook out of custom_hooks') from None

    def before_val_epoch(self, runner: Runner) -> None:
        self._tokens, self._classes = [], []

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._open.close()  # of a prediction that an exception ended
        if batch_idx % self.interval == 0 and is_main_process():
            self._recording = self._open.enter_context(record_prediction(unwrap(runner.model)))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        self._look(runner, data_batch, outputs, 'val')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._write(runner, 'val')

    def before_test_epoch(self, runner: Runner) -> None:
        self.before_val_epoch(runner)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.before_val_iter(runner, batch_idx, data_batch)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        self._look(runner, data_batch, outputs, 'test')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._write(runner, 'test')

    def _look(self, runner: Runner, batch: Any, outputs: Sequence[Any] | None, mode: str) -> None:
        self._open.close()
        recording, self._recording = self._recording, None
        if recording is None:
            return
        samples = list(batch.get('data_samples') or []) if isinstance(batch, dict) else []
        routed = recording.routed(outputs or [], samples)
        if routed is None:
            self._warn(runner, 'the backbone did not see each image once (test-time augmentation?); nothing is written')
            return
        schedule = routed.backbone.schedule
        self._blocks = [] if schedule is None else list(schedule.blocks)
        self._tokens.append(exits_of_all(routed))
        meta = runner.visualizer.dataset_meta or {}
        if meta.get('classes') and samples and all(map(has_pixel_labels, samples)):
            self._classes.append(exits_of_classes(routed, len(meta['classes'])))
        if self.draw:
            self._draw(runner, routed, meta, mode)

    def _draw(self, runner: Runner, routed: Routed, meta: dict[str, Any], mode: str) -> None:
        if not all(hasattr(sample, 'img_path') for sample in routed.samples):
            self._warn(runner, 'data samples have no img_path; no picture is drawn')
            return
        for sample, picture in zip(routed.samples, pictures_of(routed, self.backend_args)):
            image = render_picture(picture, self._blocks, meta, self.pixels)
            runner.visualizer.add_image(f'{mode}_tokens_{Path(sample.img_path).stem}.png', image, step=runner.iter)

    def _write(self, runner: Runner, mode: str) -> None:
        scalars: dict[str, float] = {}
        if self._tokens and self._blocks:
            left = torch.stack(self._tokens).mean(dim=0).flip(0).cumsum(0).flip(0)
            scalars.update({f'{mode}/cropr.tokens.{block}': float(left[block + 1]) for block in self._blocks})
        if self._classes and self._blocks:
            counts = torch.stack(self._classes).sum(dim=0)
            names = [*(runner.visualizer.dataset_meta or {})['classes'], 'background']
            for name, row in zip(names, counts):
                if row.sum() > 0:
                    scalars[f'{mode}/cropr.kept.{name}'] = float(row[-1] / row.sum())
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter)
        self._tokens, self._classes = [], []

    def _warn(self, runner: Runner, message: str) -> None:
        if not self._warned:
            runner.logger.warning(f'TokenVisualizationHook: {message}')
        self._warned = True
