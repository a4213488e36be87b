"""The plain Vision Transformer with token pruning: Token Cropr (arXiv 2412.00965)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Callable, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..tokens import Removed, SparseFeature, Tokens, restore
from ..utils.sizes import surely
from .plain_vit import Observer, PlainViT
from .positions import Positions
from .pruning.base import Context, check_reduction
from .pruning.build import Pruners, build_pruning
from .pruning.late_return import LateReturn
from .pruning.padding import padding_patches
from .pruning.schedule import Schedule
from .pruning.supervision.collector import AuxCollector

PruneListener = Callable[[int, Tensor, Tensor], None]


class Reduction(NamedTuple):
    """How a CroprViT reduces its tokens.

    Attributes:
        schedule: how many tokens leave after which block.
        pruners: by block, for those of the schedule and perhaps for more.
    """

    schedule: Schedule
    pruners: Pruners


@MODELS.register_module()
class CroprViT(PlainViT):
    """Plain Vision Transformer whose least important patch tokens are pruned block by block (arXiv 2412.00965).

    After a block, a small learned scorer ranks the current patch tokens and the lowest are pruned; before the last
    block all of them are brought back (Last Layer Fusion). Without ``pruning`` it is a :class:`PlainViT`.

    Args:
        arch: see :class:`PlainViT`, as for all arguments that are not listed here.
        out_indices: blocks whose output is returned. With a fusion of tokens the last block must be among them; with
            ``'logits'`` or None every pruner must stand before the last of them.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0, or that of each block. With Last
            Layer Fusion the last block has none, as published.
        pruning: None for the dense model, or a dict: ``pruner`` (config of a
            :class:`~cropr_mm.models.pruning.BaseReducer`), the arguments of
            :class:`~cropr_mm.models.pruning.Schedule` (``rate``, ``target_ratio`` or ``keep``, ``blocks``,
            ``round_to``, ``fusion``), those of
            :class:`~cropr_mm.models.pruning.supervision.collector.AuxCollector` (``aux_share``, ``aux_recompute``),
            ``deploy=True`` to build pruners without auxiliary parts, ``absorb`` (where pruned tokens go: None,
            ``'nearest'`` or ``'fused_token'``, :mod:`~cropr_mm.models.pruning.absorb`) and ``fused`` (one kernel at
            inference, :class:`~cropr_mm.models.pruning.BasePruner`). Weights that :meth:`switch_to_deploy` has folded
            need ``deploy``; those of training are folded as they are loaded.

    Attributes:
        pruning_progress: 0 to 1, the share of the final rate at which training prunes (curriculum). Evaluation
            always prunes at the full rate.
        prune_listeners: functions ``f(block, kept, pruned)`` called after each block of the schedule in each forward
            with the positions (B, K) and (B, R) of the patch tokens that are kept and of those that are removed.

    Raises:
        ValueError: a setting out of range; the message names the key, the value and what is valid.
    """

    def __init__(
        self,
        arch: str | dict[str, Any],
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        drop_path_rate: float | Sequence[float] = 0.0,
        final_norm: bool = True,
        window_size: int | None = None,
        global_blocks: Sequence[int] = (),
        with_cp: bool = False,
        frozen_stages: int = -1,
        pruning: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        self._settings = pruning  # which the base class lets us read as it builds
        super().__init__(
            arch,
            img_size=img_size,
            patch_size=patch_size,
            in_channels=in_channels,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            final_norm=final_norm,
            window_size=window_size,
            global_blocks=global_blocks,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            init_cfg=init_cfg,
        )
        if self.schedule is not None:
            self._check_out_indices(out_indices, self.schedule)
            self._check_windows(self.pruners)
        self.pruning_progress = 1.0
        self.prune_listeners: list[PruneListener] = []
        self.pruners_are_new = False  # a checkpoint without pruners was loaded, and they have not trained since
        self.aux_is_read = False  # set by CroprHook, which reads the auxiliary losses of every step
        self._learns = False  # whether the last forward was a training step

    def _build_blocks(self, drop_path_rates: list[float], final_norm: bool) -> None:
        self.schedule: Schedule | None = None
        self.pruners, self._supervision = Pruners(), AuxCollector()
        if self._settings is not None:
            shape = dict(embed_dim=self.embed_dims, grid=self.grid, patch_size=self.patch_size)
            built = build_pruning(self._settings, self.depth, self.arch.class_token, **shape)
            self.schedule, self.pruners, self._supervision = built
        fusion = None if self.schedule is None else self.schedule.fusion
        self.late_return = LateReturn(self.arch) if fusion == 'cross_attention' else None
        if self.fusion:
            drop_path_rates[-1] = 0.0
        super()._build_blocks(drop_path_rates, final_norm)

    def _check_out_indices(self, out_indices: int | Sequence[int], schedule: Schedule) -> None:
        last = self.out_indices[-1]
        if last == self.depth - 1:
            return
        if schedule.fusion in ('last_layer', 'cross_attention'):
            raise ValueError(
                f'out_indices={out_indices!r} leaves out the last block, {self.depth - 1}, in which the pruned tokens '
                f'return; add it, or set arch.depth={last + 1} for a model that ends there'
            )
        if schedule.blocks[-1] >= last:
            raise ValueError(
                f'out_indices={out_indices!r}: nothing after block {last} is computed, but pruning has a pruner after '
                f'block {schedule.blocks[-1]}; set pruning.blocks (or pruning.keep) to blocks from 0 to {last - 1}'
            )

    def _check_windows(self, pruners: Pruners) -> None:
        misfit = next((pruner for pruner in pruners.values() if not pruner.fits_windows), None)
        if misfit is not None and self.window_size is not None:
            raise ValueError(
                f'pruning.pruner.type={type(misfit).__name__!r} with window_size={self.window_size}; None is expected, '
                'as tokens of different windows would merge'
            )

    # --- other ways to reduce -----------------------------------------------------------------------------------

    @property
    def fusion(self) -> bool:
        """Whether pruned tokens come back before the last block (Last Layer Fusion)."""
        return self.schedule is not None and self.schedule.fusion == 'last_layer'

    @property
    def reduction(self) -> Reduction | None:
        """How tokens are reduced; None: not at all. Another one may take its place at inference, with the same weights
        (:meth:`build_reduction`)."""
        return None if self.schedule is None else Reduction(self.schedule, self.pruners)

    @reduction.setter
    def reduction(self, reduction: Reduction | None) -> None:
        self.schedule, self.pruners = (None, Pruners()) if reduction is None else reduction

    def build_reduction(self, pruning: dict[str, Any]) -> Reduction:
        """Another way to reduce the tokens of this model, which itself stays as it is.

        Args:
            pruning: as for the constructor. New pruners that have weights are random.

        Raises:
            ValueError: as by the constructor, and for ``fusion='cross_attention'``, whose weights only the constructor
                makes.
        """
        shape = dict(embed_dim=self.embed_dims, grid=self.grid, patch_size=self.patch_size)
        schedule, pruners, _ = build_pruning(pruning, self.depth, self.arch.class_token, **shape)
        if schedule.fusion == 'cross_attention' and self.late_return is None:
            raise ValueError(
                "pruning.fusion='cross_attention': it has weights, which this model has not; 'last_layer' or None is "
                'expected'
            )
        self._check_out_indices(self.out_indices, schedule)
        self._check_windows(pruners)
        pruners.to(next(self.parameters()).device).train(self.training)
        return Reduction(schedule, pruners)

    # --- forward ----------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> tuple[SparseFeature, ...]:
        """Features of the blocks ``out_indices``.

        Args:
            images: (B, 3, H, W) with any H and W; padded to whole patches on the right and at the bottom.

        Returns:
            One SparseFeature per level. A level before the last block holds every token as it was when it was
            last processed.
        """
        x, grid = self.embed(images)
        positions = Positions(self.arch, grid, self.window_size, x.device)
        counts = self.counts(grid)
        prunes = not all(surely(count == 0) for count in counts.values())
        padding = padding_patches(images, self.patch_size) if prunes else None
        self._begin(prunes)
        tokens = positions.arrange(x)
        removed: list[Removed] = []
        outputs: list[SparseFeature] = []
        for i in range(self.out_indices[-1] + 1):
            if i == self.depth - 1 and self.fusion and prunes:
                # Last Layer Fusion: the pruned tokens come back and attend to the deep ones once
                tokens, removed = restore(tokens, removed, positions.order), []
            tokens, observed = self.run_block(i, tokens, positions, self._observer(i, counts))
            if i == self.depth - 1 and self.late_return is not None:
                tokens, removed = self.late_return(tokens, removed, positions.order), []
            if i in self.out_indices:
                outputs.append(self.output(i, tokens, grid, removed))
            if i in counts:
                # score the patch tokens, keep the best, prune the rest
                self._collect(i, tokens, grid)
                context = Context(grid, padding, observed, in_order=self.window_size is not None)
                tokens, parts = self.reduce(i, tokens, counts[i], context)
                removed += parts
        return tuple(outputs)

    def counts(self, grid: tuple[int, int]) -> dict[int, int]:
        """Patch tokens to remove after each block of the schedule, now: in training that depends on the curriculum."""
        if self.schedule is None:
            return {}
        progress = self.pruning_progress if self.training else 1.0
        return dict(zip(self.schedule.blocks, self.schedule.counts(grid, self.num_prefix_tokens, progress)))

    def reduce(self, block: int, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        """Remove ``count`` patch tokens after a block; see :meth:`BaseReducer.forward`.

        Raises:
            ValueError: the pruner removed another number, or does not say how a position comes back.
        """
        before, removed = tokens, []
        if not surely(count == 0):
            pruner = self.pruners[str(block)]
            tokens, removed = pruner(tokens, count, context)
            check_reduction(type(pruner).__name__, before, count, tokens, removed)
        for listener in self.prune_listeners:
            gone = [part.position for part in removed] or [before.position[:, :0]]
            listener(block, tokens.position, torch.cat(gone, dim=1))
        return tokens, removed

    def output(
        self, block: int, tokens: Tokens, grid: tuple[int, int], removed: Sequence[Removed] = ()
    ) -> SparseFeature:
        """As :meth:`PlainViT.output`, with what was removed before, each part as it was then."""
        if block == self.depth - 1:
            removed = [part if part.x is None else part._replace(x=self.norm(part.x)) for part in removed]
        return replace(super().output(block, tokens, grid), removed=tuple(removed))

    def _observer(self, block: int, counts: dict[int, int]) -> Observer | None:
        pruner = None if surely(counts.get(block, 0) == 0) else self.pruners[str(block)]
        return pruner.observe if pruner is not None and pruner.observes else None

    def _begin(self, prunes: bool) -> None:
        """Check what the weights are good for, and start the supervision of a training step."""
        self._check_weights()
        if prunes and not self.training and self.pruners_are_new:
            raise RuntimeError(
                'CroprViT: the checkpoint that was loaded has no pruners, and they have not trained since, so '
                'pruning would be random. Load a checkpoint of the pruned model, train the pruners '
                '(CroprHook, retrofit=True for them alone), or set pruning=None'
            )
        learns = self.training and torch.is_grad_enabled()
        if self._learns != learns:  # (an evaluation changes nothing, so that it exports)
            self._learns = learns
        if learns:  # an evaluation in between must not hide that what a step showed went unused
            self._check_pending()
            self.pruners_are_new = False
            self._supervision.start(self.pruners.items())

    # --- auxiliary losses -------------------------------------------------------------------------------------

    def _check_pending(self) -> None:
        if not self._supervision.pending:
            return
        advice = "Add custom_hooks=[dict(type='CroprHook')] to the config"
        if self.aux_is_read:
            advice = "CroprHook reads them where the model is called with mode='loss', as train_step does: call it so"
        raise RuntimeError(
            'CroprViT: the auxiliary predictions of the last training step were not used, so the pruners learn '
            f'nothing. {advice}, or add backbone.aux_losses(data_samples) to your loss after each forward. A '
            'pruner without parameters (RandomPruner) needs neither.'
        )

    def _collect(self, block: int, tokens: Tokens, grid: tuple[int, int]) -> None:
        if self._learns:
            self._supervision.collect(block, tokens, grid)

    def aux_losses(self, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Auxiliary losses of the last training forward.

        Args:
            data_samples: the batch's data samples, as the main head gets them.

        Returns:
            ``'loss_aux'``, the sum over all pruners, to be added to the model's loss with weight 1, and
            ``'aux.{block}'``, the detached value of each, for the log. Empty where there is nothing to train, and
            where the last forward was an evaluation.
        """
        return self._supervision.losses(data_samples) if self._learns else {}

    def forget_aux(self) -> None:
        """Drop what the last forward kept for its auxiliary losses; for forwards that are no training step."""
        self._supervision.forget()

    # --- deployment -------------------------------------------------------------------------------------------

    def switch_to_deploy(self) -> None:
        """Fold the queries of every scorer into one vector and drop the auxiliary parts; same output."""
        for pruner in self.pruners.values():
            pruner.switch_to_deploy()


def fold_scorers(model: nn.Module) -> None:
    """Call :meth:`CroprViT.switch_to_deploy` of every CroprViT inside a model."""
    for module in model.modules():
        if isinstance(module, CroprViT):
            module.switch_to_deploy()


def find_backbone(model: nn.Module) -> CroprViT:
    """The CroprViT inside a model.

    Raises:
        ValueError: the model has none.
    """
    for module in model.modules():
        if isinstance(module, CroprViT):
            return module
    raise ValueError(f'{type(model).__name__} has no CroprViT; set model.backbone.type to it')
