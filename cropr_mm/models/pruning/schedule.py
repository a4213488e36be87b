"""How many tokens are pruned where: pure arithmetic, no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...utils.checks import check_integer, is_integer, is_number
from ...utils.sizes import opened

FUSIONS = ('last_layer', 'cross_attention', 'logits', None)
PARTS = 10**12
"""Parts of a token, so that shares of tokens are integers."""


def most_pruners(depth: int, fusion: str | None) -> int:
    """How many blocks, from the first on, may have a pruner after them."""
    return depth - (2 if fusion == 'last_layer' else 1)


def evenly_spaced(depth: int, stages: int) -> list[int]:
    """The blocks that ``stages`` pruners stand after when they divide a transformer of ``depth`` blocks evenly."""
    return [depth * stage // (stages + 1) - 1 for stage in range(1, stages + 1)]


class Schedule:
    """Token counts of a pruned Vision Transformer.

    A pruner stands after a block and removes patch tokens; prefix tokens are always kept. By default there is one
    after every block but the last two with Last Layer Fusion (all tokens come back after the second-to-last), and
    after every block but the last otherwise (arXiv 2412.00965, section 3).

    Args:
        depth: blocks of the transformer.
        grid: (H, W), the patch grid at the training size.
        rate: constant rate. An int is the number of tokens pruned after each block on ``grid``, in proportion
            on any other; a float is the share of all patch tokens pruned after each block, between 0 and 1.
        target_ratio: instead of ``rate``: the share of all patch tokens that is pruned in the end,
            between 0 and 1, in equal parts at each (the paper's token pruning ratio, TPR).
        keep: instead of both: ``{block: ratio}``, the share of all patch tokens that is kept after that
            block (keep ratio), between 0 and 1 and falling (one-shot: one entry; stepwise: several).
        blocks: with ``rate`` or ``target_ratio``: the blocks that have a pruner after them; all possible
            ones by default.
        round_to: the number of kept tokens, prefix included, is the multiple of this nearest to the plan (matrix
            kernels run slower on odd sizes). 1 switches rounding off.
        fusion: ``'last_layer'``, ``'cross_attention'`` (:class:`~cropr_mm.models.pruning.late_return.LateReturn`),
            ``'logits'`` (:mod:`~cropr_mm.models.logit_fusion`) or None.

    Attributes:
        blocks: the block before each pruner, ascending.
        rate: the constant rate, also where ``target_ratio`` asked for it (then a share); None with ``keep``.

    Raises:
        ValueError: a setting that leaves no patch token, or out of range; the message names the key.
    """

    def __init__(
        self,
        depth: int,
        grid: tuple[int, int],
        *,
        rate: float | None = None,
        target_ratio: float | None = None,
        keep: Mapping[int, float] | None = None,
        blocks: Sequence[int] | None = None,
        round_to: int = 8,
        fusion: str | None = 'last_layer',
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f'pruning.fusion={fusion!r}; one of {", ".join(map(repr, FUSIONS))} is expected')
        plans = dict(rate=rate, target_ratio=target_ratio, keep=keep)
        if sum(plan is not None for plan in plans.values()) != 1:
            listed = ', '.join(f'pruning.{key}={plan!r}' for key, plan in plans.items())
            raise ValueError(f'{listed}; exactly one of them is expected')
        last = most_pruners(depth, fusion) - 1
        if last < 0:
            raise ValueError(
                f'arch.depth={depth} with pruning.fusion={fusion!r}; at least {depth - last} blocks are expected'
            )
        self.num_patches: int = grid[0] * grid[1]
        self.round_to: int = check_integer('pruning.round_to', round_to)
        self.fusion: str | None = fusion
        self.rate: float | None = rate
        self.keep: tuple[float, ...] = ()
        self.blocks: tuple[int, ...] = ()
        if keep is not None:
            self.blocks, self.keep = self._check_keep(keep, blocks, last)
        else:
            self.blocks = self._check_blocks(range(last + 1) if blocks is None else blocks, last)
            if target_ratio is not None:
                self.rate = self._solve_rate(target_ratio)
            self._check_rate()

    def _check_blocks(self, blocks: Sequence[int], last: int, key: str = 'blocks') -> tuple[int, ...]:
        listed = list(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else None
        if (
            not listed
            or any(not is_integer(b) or not 0 <= b <= last for b in listed)
            or len(set(listed)) != len(listed)
        ):
            shown = blocks if listed is None else listed
            raise ValueError(f'pruning.{key}={shown!r}; different blocks from 0 to {last} are expected')
        return tuple(sorted(listed))

    def _check_keep(
        self, keep: Mapping[int, float], blocks: Sequence[int] | None, last: int
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        if not isinstance(keep, Mapping):
            raise ValueError(
                f'pruning.keep={keep!r}; a dict of blocks and ratios is expected, such as {{2: 0.3}} '
                '(on the command line: pruning.keep.2=0.3)'
            )
        if blocks is not None:
            raise ValueError(
                f'pruning.blocks={blocks!r} goes with pruning.rate or target_ratio; pruning.keep has its own'
            )
        # Config files written as JSON or YAML, and --cfg-options, give the block numbers as strings. Where a number is
        # there both ways, the command line came later.
        plan = {int(b) if isinstance(b, str) and b.isdecimal() else b: ratio for b, ratio in keep.items()}
        order = self._check_blocks(list(plan), last, 'keep')
        ratios = tuple(plan[b] for b in order)
        if any(not is_number(r) or not 0 < r <= 1 for r in ratios) or any(a < b for a, b in zip(ratios, ratios[1:])):
            raise ValueError(
                f'pruning.keep={dict(keep)}; ratios above 0, at most 1 and falling from block to block are expected'
            )
        if ratios[-1] * self.num_patches < 1:
            raise ValueError(
                f'pruning.keep={dict(keep)} leaves {ratios[-1] * self.num_patches:.2f} of '
                f'{self.num_patches} tokens after block {order[-1]}; at least one must be kept'
            )
        return order, ratios

    def _solve_rate(self, target: Any) -> float:
        most = (self.num_patches - 1) / self.num_patches
        if not is_number(target) or not 0 <= target <= most:
            raise ValueError(
                f'pruning.target_ratio={target!r}; a share from 0 to {math.floor(most * 1e4) / 1e4} is expected: '
                f'one of the {self.num_patches} tokens must stay'
            )
        return float(target) / len(self.blocks)

    def _check_rate(self) -> None:
        rate: Any = self.rate
        if not is_number(rate) or rate < 0:
            raise ValueError(f'pruning.rate={rate!r}; an integer (tokens) or a share between 0 and 1 is expected')
        if not isinstance(rate, int) and not rate < 1:
            raise ValueError(f'pruning.rate={rate!r}; a share below 1 is expected (an integer for tokens)')
        pruned = rate if isinstance(rate, int) else rate * self.num_patches
        for pruners, block in enumerate(self.blocks, 1):
            left = self.num_patches - pruned * pruners
            if left < 1:
                most = (self.num_patches - 1) / len(self.blocks)
                share = math.floor(most / self.num_patches * 1e4) / 1e4  # rounded up, it would not fit
                limit = f'{int(most)}' if isinstance(rate, int) else f'{share:.4f}'
                raise ValueError(
                    f'pruning.rate={rate} leaves {left:g} of {self.num_patches} tokens after block '
                    f'{block}; at most {limit} fits {len(self.blocks)} pruners'
                )

    def _shares(self, progress: float) -> list[float]:
        """Share of the patch tokens that should be kept after each block of the schedule."""
        if self.keep:
            return [1 - progress * (1 - ratio) for ratio in self.keep]
        rate = self.rate or 0
        # The curriculum moves in whole tokens.
        share = math.floor(rate * progress) / self.num_patches if isinstance(rate, int) else rate * progress
        return [1 - share * pruners for pruners in range(1, len(self.blocks) + 1)]

    def counts(self, grid: tuple[int, int], prefix: int = 0, progress: float = 1.0) -> list[int]:
        """Tokens to prune after each block of the schedule.

        Args:
            grid: (H, W), the patch grid of the images.
            prefix: number of class and register tokens.
            progress: 0 to 1, the share of the final rate (curriculum).

        Returns:
            One count per block; their sum is always below ``H * W``.
        """
        patches = grid[0] * grid[1]
        if torch.jit.is_tracing():  # which makes a tensor of every size
            patches = int(patches)
        left = [patches + prefix]
        left += [opened(self._left(share, patches, prefix), prefix + 1) for share in self._shares(progress)]
        return [before - after for before, after in zip(left, left[1:])]

    def _left(self, share: float, patches: int, prefix: int) -> int:
        """Tokens to keep, prefix included: integers, and no decision on them, as an export may leave them open."""
        if share >= 1:
            return patches + prefix
        # 0.55 * 1600 is 880.0000000000001; that is no token more.
        planned = patches * round(share * PARTS) + prefix * PARTS - PARTS // 10**6
        left = (planned + PARTS - 1) // PARTS
        if self.round_to > 1:
            # Nearest multiple, halves down. A plan too small for one multiple stands as it is.
            multiple = self.round_to * PARTS
            rounded = (planned + multiple // 2 - 1) // multiple * self.round_to
            left = torch.sym_max(rounded, torch.sym_min(left, (self.round_to + 1) // 2))
        return torch.sym_min(torch.sym_max(left, prefix + 1), patches + prefix)

    def tokens_per_block(
        self, depth: int, grid: tuple[int, int], prefix: int = 0, fusion: bool = True, progress: float = 1.0
    ) -> list[int]:
        """Tokens, prefix included, that each block processes; for the arguments see :meth:`counts`."""
        current = grid[0] * grid[1] + prefix
        pruned = dict(zip(self.blocks, self.counts(grid, prefix, progress)))
        full, tokens = current, []
        for block in range(depth):
            tokens.append(full if fusion and block == depth - 1 else current)
            current -= pruned.get(block, 0)
        return tokens
