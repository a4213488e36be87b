"""How the pruning rate grows in training."""

from __future__ import annotations

import math
from collections.abc import Callable

from mmengine.runner import EpochBasedTrainLoop, Runner

from ..utils.checks import check_flag, is_number

SHAPES: dict[str, Callable[[float], float]] = {
    'linear': lambda t: t,
    'cosine': lambda t: (1 - math.cos(math.pi * t)) / 2,  # slow at both ends
    'cubic': lambda t: 1 - (1 - t) ** 3,  # fast at first, as in gradual weight pruning (arXiv 1710.01878, eq. 1)
}


class Curriculum:
    """Share of the final pruning rate, from the iteration or epoch alone, so a resumed run continues exactly.

    As published (arXiv 2412.00965): linear from 0 over the first half of the epochs, then constant.

    Args:
        ramp: share of the training, 0 to 1, over which the rate grows from 0 to its final value. 0 jumps.
        begin: share of the training, 0 to 1, before the growth begins; until then nothing is pruned while the
            pruners learn already.
        shape: ``'linear'``, ``'cosine'`` or ``'cubic'``.
        by_epoch: whether the rate changes from epoch to epoch only, or from iteration to iteration.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, ramp: float = 0.5, begin: float = 0.0, shape: str = 'linear', by_epoch: bool = False) -> None:
        for key, value in (('ramp', ramp), ('begin', begin)):
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f'CroprHook.{key}={value!r}; a share of the training between 0 and 1 is expected')
        if ramp + begin > 1:
            raise ValueError(
                f'CroprHook.begin={begin!r} and ramp={ramp!r}: the rate would not be reached before the training '
                'ends; a sum of at most 1 is expected'
            )
        if shape not in SHAPES:
            raise ValueError(f'CroprHook.shape={shape!r} is unknown; valid are {", ".join(map(repr, SHAPES))}')
        self.ramp, self.begin, self.shape = ramp, begin, shape
        self.by_epoch = check_flag('CroprHook.by_epoch', by_epoch)

    def check(self, runner: Runner) -> None:
        """Raise ValueError where the loop knows no epochs and ``by_epoch`` asks for them."""
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'CroprHook.by_epoch=True, but train_cfg.type is {type(runner.train_loop).__name__}, which has no '
                'epochs; False is expected there'
            )

    def progress(self, done: int, total: int) -> float:
        """Share of the final rate, 0 to 1, after ``done`` of ``total`` iterations (or epochs)."""
        past = done - self.begin * total
        if past < 0:
            return 0.0
        length = self.ramp * total
        return SHAPES[self.shape](past / length) if past < length else 1.0

    def progress_of(self, runner: Runner) -> float:
        """Share of the final rate at the runner's iteration or epoch."""
        if self.by_epoch:
            return self.progress(runner.epoch, runner.max_epochs)
        return self.progress(runner.iter, runner.max_iters)
