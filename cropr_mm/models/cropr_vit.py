"""The plain Vision Transformer, dense or with tokens taken aside block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoint import load_init_cfg, resize_position_embedding
from ..checkpoint.state_dict import begin_loading, end_loading
from ..tokens import SparseFeature
from ..utils.checks import check_flag, check_integer, is_integer, is_number, is_type
from .archs import resolve_arch
from .layers import Block, PatchEmbed, class_attention, init_vit_weights, padding_patches
from .positions import Geometry
from .pruning import BasePruner, Schedule
from .pruning.build import PrunerList, build_pruning
from .pruning.selection import Tokens, concat, restore, split
from .pruning.supervision.collector import Auxiliary
from .rotary import rotary_angles

PruneListener = Callable[[int, int, Tensor, Tensor], None]


@MODELS.register_module()
class CroprViT(BaseModule):
    """Plain Vision Transformer whose blocks may take unimportant tokens aside (Token Cropr, arXiv 2412.00965).

    Parameters carry timm's names, so that published weights load as they are, through ``init_cfg`` alone.

    Args:
        arch: a name (``'vit-tiny|small|base|large|huge'``, ``'eva02-tiny|small|base|large'``,
            ``'dinov2-small|base|large|giant'`` and the same with ``-reg4``,
            ``'dinov3-small|small-plus|base|large|huge-plus|7b'``) or a dict with ``family``, ``embed_dim``,
            ``depth``, ``num_heads`` and, if it differs from the family's, any other field of
            :class:`~cropr_mm.models.archs.Arch`.
        img_size: side of the training images in pixels, or (H, W). Other sizes work too.
        patch_size: pixels per patch side.
        in_channels: channels of the images.
        out_indices: blocks whose output is returned; negative ones count from the end. Blocks after the last of them
            are not computed and do not train. Where tokens are pruned, they return in the last block (Last Layer
            Fusion), which must then be among them; with ``fusion=None`` every module must stand before the last of
            them.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0. With Last Layer Fusion the
            last block itself has none, as published.
        final_norm: whether the output of the last block is normalised.
        window_size: side of a window in patches. Blocks then attend within windows of the patch grid (ViTDet, arXiv
            2203.16527; EVA-02's detectors), pruned tokens to the tokens of their window that are still there. Class
            and register tokens attend to all tokens, and all to them. None: global attention.
        global_blocks: with ``window_size``: the blocks that attend to all tokens all the same.
        with_cp: recompute each block in the backward pass instead of storing what is inside it: less memory,
            more time.
        frozen_stages: -1 trains everything, 0 freezes the embedding, k also the first k blocks; all of them: the
            final norm too. Frozen parts stay in evaluation mode.
        pruning: None for the dense model, or a dict: ``pruner`` (config of a :class:`BasePruner`), the arguments
            of :class:`Schedule` (``rate``, ``target_ratio`` or ``keep``, ``blocks``, ``round_to``, ``fusion``), those
            of :class:`~cropr_mm.models.pruning.supervision.collector.Auxiliary` (``aux_share``, ``aux_recompute``), and
            ``deploy=True`` to build scorers without auxiliary parts. Weights that :meth:`switch_to_deploy` has
            folded need it; those of training are folded as they are loaded.
        init_cfg: ``dict(type='Pretrained', checkpoint=path)`` loads published weights, from any of the layouts in
            :data:`~cropr_mm.checkpoint.layouts.LAYOUTS`; ``prefix`` chooses where a file holds several models.

    Attributes:
        pruning_progress: 0 to 1, the share of the final rate that training prunes (curriculum). Evaluation always
            prunes at the full rate.
        prune_listeners: functions ``f(module, block, kept, removed)`` called at each module in each forward with
            the raster positions (B, K) and (B, R) of the patch tokens that go on and of those taken aside.

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
        drop_path_rate: float = 0.0,
        final_norm: bool = True,
        window_size: int | None = None,
        global_blocks: Sequence[int] = (),
        with_cp: bool = False,
        frozen_stages: int = -1,
        pruning: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch)
        self.embed_dims, self.depth = self.arch.embed_dim, self.arch.depth
        self.patch_size = check_integer('patch_size', patch_size)
        self.in_channels = check_integer('in_channels', in_channels)
        sides = tuple(img_size) if isinstance(img_size, (list, tuple)) else (img_size, img_size)
        if len(sides) != 2:
            raise ValueError(f'img_size={img_size!r}; an integer or (H, W) is expected')
        self.grid = self.grid_of(check_integer('img_size', sides[0]), check_integer('img_size', sides[1]))
        self.num_prefix_tokens = self.arch.num_prefix_tokens
        self.out_indices = self._resolve_blocks('out_indices', out_indices)
        self.window_size = None if window_size is None else check_integer('window_size', window_size)
        self.global_blocks = self._resolve_blocks('global_blocks', global_blocks, at_least=0)
        if self.global_blocks and window_size is None:
            raise ValueError(f'global_blocks={global_blocks!r} without window_size; all blocks are global then')
        if not is_number(drop_path_rate) or not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate!r}; 0 or more and below 1 is expected')

        dim, registers = self.embed_dims, self.arch.num_registers
        positions = self.arch.num_embedded_prefix_tokens + self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbed(self.patch_size, in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if self.arch.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim)) if self.arch.position_embedding else None
        self.schedule: Schedule | None = None
        self.pruners, self._auxiliary = PrunerList([], []), Auxiliary()
        if pruning is not None:
            shape = dict(embed_dim=dim, grid=self.grid, patch_size=self.patch_size)
            built = build_pruning(pruning, self.depth, self.arch.class_token, **shape)
            self.schedule, self.pruners, self._auxiliary = built
        self.fusion = self.schedule is not None and self.schedule.fusion is not None
        self._check_out_indices(out_indices)
        rates = torch.linspace(0, drop_path_rate, self.depth, device='cpu').tolist()
        if self.fusion:
            rates[-1] = 0.0
        self.blocks = nn.ModuleList(Block(self.arch, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=self.arch.norm_eps) if check_flag('final_norm', final_norm) else nn.Identity()
        for part in (self.patch_embed, self.blocks):
            part.apply(init_vit_weights)
        for embedding in (self.pos_embed, self.cls_token, self.reg_token):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02)

        if not is_integer(frozen_stages) or not -1 <= frozen_stages <= self.depth:
            raise ValueError(f'frozen_stages={frozen_stages!r}; -1 to {self.depth} is expected')
        self.with_cp, self.frozen_stages = check_flag('with_cp', with_cp), frozen_stages
        self._freeze()
        self.pruning_progress = 1.0
        self.prune_listeners: list[PruneListener] = []
        self.register_load_state_dict_post_hook(end_loading)
        # None: as built; True: loaded or trained; False: as built, and a checkpoint of another backbone was loaded.
        self.has_weights: bool | None = None
        self.scorers_are_new = False  # a checkpoint without scorers was loaded, and they have not trained since
        self.aux_is_read = False  # set by CroprHook, which reads the auxiliary losses of every step
        self._learns = False  # whether the last forward was a training step

    # --- construction -----------------------------------------------------------------------------------------

    def _resolve_blocks(self, key: str, blocks: int | Sequence[int], at_least: int = 1) -> tuple[int, ...]:
        wanted: tuple[Any, ...] = (blocks,)
        if isinstance(blocks, Sequence) and not isinstance(blocks, str):
            wanted = tuple(blocks)
        valid = all(is_integer(i) and -self.depth <= i < self.depth for i in wanted)
        resolved = tuple(i % self.depth for i in wanted) if valid else ()
        if not valid or len(resolved) < at_least or list(resolved) != sorted(set(resolved)):
            raise ValueError(
                f'{key}={blocks!r}; different ascending blocks of the {self.depth} '
                f'(0 to {self.depth - 1}, or negative from the end) are expected'
            )
        return resolved

    def _check_out_indices(self, out_indices: int | Sequence[int]) -> None:
        last = self.out_indices[-1]
        if self.schedule is None or last == self.depth - 1:
            return
        if self.fusion:
            raise ValueError(
                f'out_indices={out_indices!r} leaves out the last block, {self.depth - 1}, in which the pruned tokens '
                f'return; add it, or set arch.depth={last + 1} for a model that ends there'
            )
        if self.schedule.blocks[-1] >= last:
            raise ValueError(
                f'out_indices={out_indices!r}: nothing after block {last} is computed, but pruning has a module after '
                f'block {self.schedule.blocks[-1]}; set pruning.blocks (or pruning.keep) to blocks from 0 to {last - 1}'
            )

    def _freeze(self) -> None:
        last = self.out_indices[-1]
        if last < self.depth - 1:  # what is not computed has no gradient either: DDP then does not wait for one
            for part in (*list(self.blocks)[last + 1 :], self.norm):
                part.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        for parameter in self.parameters(recurse=False):  # class and register tokens, position embedding
            parameter.requires_grad_(False)
        parts = [self.patch_embed, *list(self.blocks)[: self.frozen_stages]]
        if self.frozen_stages == self.depth:
            parts.append(self.norm)
        for part in parts:
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> CroprViT:
        super().train(mode)
        self._freeze()
        return self

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint, if any; otherwise the initial values of the constructor stay."""
        settings = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else list(self.init_cfg or [])
        pretrained = [entry for entry in settings if is_type(entry, 'Pretrained', 'PretrainedInit')]
        if not pretrained:
            super().init_weights()
            return
        if len(settings) > 1:
            raise ValueError(f'init_cfg={settings!r}; one entry is expected, as Pretrained replaces every weight')
        load_init_cfg(self, pretrained[0])
        self._is_init = True

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A position embedding of 64 tokens may be of 8 × 8 or of 4 × 16 patches; loading into another grid must know.
        if prefix[:-1] in getattr(destination, '_metadata', {}):
            destination._metadata[prefix[:-1]]['grid'] = self.grid

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        self._loading = begin_loading(self, state_dict, prefix, local_metadata, *lists)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    # --- forward ----------------------------------------------------------------------------------------------

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (H, W) of an image of ``height`` × ``width`` pixels."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def rotary_angles(self, grid: tuple[int, int]) -> Tensor | None:
        """Cosine and sine (N, head_dim / 2, 2) by which each patch token of a grid is turned; None for no rotation."""
        angles = rotary_angles(self.arch, grid, torch.device('cpu'))
        return None if angles is None else angles[self.num_prefix_tokens :]

    def forward(self, images: Tensor) -> tuple[SparseFeature, ...]:
        """Features of the blocks ``out_indices``.

        Args:
            images: (B, 3, H, W) with any H and W; padded to whole patches on the right and at the bottom.

        Returns:
            One SparseFeature per level. A level in front of the last block holds every token as it was when it
            was last processed.
        """
        x, grid = self._embed(images)
        geometry = Geometry(self.arch, grid, self.window_size, images.device)
        if self.window_size is not None:
            x = x.index_select(1, geometry.order)
        tokens = Tokens(x, geometry.complete(len(x)))
        aside: list[Tokens] = []
        levels: list[SparseFeature] = []
        modules = self._leaving(grid)
        pruned = any(count for _, count in modules.values())
        handicap = self._handicap(images) if pruned else images.new_empty(0)
        if not self.training:
            self._check_weights(pruned)
        learning = self.training and torch.is_grad_enabled()
        self._start_auxiliary(learning)
        for i in range(self.out_indices[-1] + 1):
            last = i == self.depth - 1
            if last and self.fusion and aside:
                tokens, aside = self._fuse(tokens, aside, geometry), []
            module, count = modules.get(i, (0, 0))
            watched = count > 0 and self._pruner(module).reads_class_attention
            x, attention = self._run_block(i, tokens.x, geometry, watched)
            tokens = Tokens(x, tokens.position)
            if i in self.out_indices:
                levels.append(self._level(tokens, aside, grid, last))
            if i not in modules:
                continue
            patches, removed = self._patches(tokens), None
            if learning:
                self._auxiliary.see(module, self._pruner(module), tokens.x, patches, grid)
            if count:
                scores = self._score(module, tokens, patches, grid, attention, handicap)
                tokens, removed = self._select(tokens, scores, count)
                aside.append(removed)
                geometry.select(tokens.position)
            self._tell(module, i, tokens, removed)
        return tuple(levels)

    def _check_weights(self, pruned: bool) -> None:
        """Raise RuntimeError where an evaluation would be one of random weights although a checkpoint was loaded."""
        if self.has_weights is False:
            raise RuntimeError(
                'CroprViT: the checkpoint that was loaded is of another backbone, and this one has not trained, so '
                'that its outputs would be random. Load a checkpoint of this model'
            )
        if pruned and self.scorers_are_new:
            raise RuntimeError(
                'CroprViT: the checkpoint that was loaded has no scorers, and they have not trained since, so that '
                'chance would prune. Load a checkpoint of the pruned model, train the scorers '
                '(CroprHook, retrofit=True for them alone), or set pruning=None'
            )

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != self.in_channels:
            found = f'shape {tuple(images.shape)}' if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f'CroprViT: images of {found}; a batch (B, {self.in_channels}, H, W) is expected')
        x, grid = self.patch_embed(images)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1)
        if self.pos_embed is not None:
            embedded = self.arch.num_embedded_prefix_tokens
            positions = resize_position_embedding(self.pos_embed, self.grid, grid, embedded)
            x = x + F.pad(positions, (0, 0, self.num_prefix_tokens - embedded, 0))  # zeros for the others
        return x, grid

    def _run_block(
        self, block: int, x: Tensor, geometry: Geometry, with_attention: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Output of a block and, if wanted, the attention that the class token gave each patch token in it."""
        seen: list[Tensor] = []

        def watch(q: Tensor, k: Tensor) -> None:
            seen.append(class_attention(q, k, self.num_prefix_tokens))

        windowed = self.window_size is not None and block not in self.global_blocks
        inputs = (x, geometry.rotary(windowed), geometry.windows() if windowed else None)
        arguments = (*inputs, watch) if with_attention else inputs
        if self.with_cp and self.training and torch.is_grad_enabled():
            x = checkpoint(self.blocks[block], *arguments, use_reentrant=False)
        else:
            x = self.blocks[block](*arguments)
        return x, seen[0] if seen else None

    def _leaving(self, grid: tuple[int, int]) -> dict[int, tuple[int, int]]:
        """Block → (module, tokens that leave)."""
        if self.schedule is None:
            return {}
        progress = self.pruning_progress if self.training else 1.0
        counts = self.schedule.counts(grid, self.num_prefix_tokens, progress)
        return {block: (module, counts[module]) for module, block in enumerate(self.schedule.blocks)}

    def _pruner(self, module: int) -> BasePruner:
        return cast(BasePruner, self.pruners[module])

    def _patches(self, tokens: Tokens) -> Tensor:
        """Raster positions (B, N) of the patch tokens, which stand behind the prefix."""
        prefix = self.num_prefix_tokens
        return tokens.position[:, prefix:] - prefix if prefix else tokens.position

    def _handicap(self, images: Tensor) -> Tensor:
        """(B, P + N) float32, to be added to scores by position: padding never displaces a token of the image."""
        padding = F.pad(padding_patches(images, self.patch_size), (self.num_prefix_tokens, 0))
        return torch.zeros_like(padding, dtype=torch.float32).masked_fill_(padding, -torch.inf)

    def _score(
        self,
        module: int,
        tokens: Tokens,
        patches: Tensor,
        grid: tuple[int, int],
        attention: Tensor | None,
        handicap: Tensor,
    ) -> Tensor:
        patch_tokens = tokens.x[:, self.num_prefix_tokens :].detach()
        pruner = self._pruner(module)
        scores = pruner.score(patch_tokens, patches, grid, attention)
        if not isinstance(scores, Tensor) or scores.shape != patches.shape:
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f'{type(pruner).__name__}.score returned {found}; one score per patch token, (B, N) = '
                f'{tuple(patches.shape)}, is expected'
            )
        return scores + handicap.gather(1, tokens.position[:, self.num_prefix_tokens :])

    def _select(self, tokens: Tokens, scores: Tensor, count: int) -> tuple[Tokens, Tokens]:
        return split(tokens, scores, count, self.num_prefix_tokens)

    def _fuse(self, tokens: Tokens, aside: list[Tokens], geometry: Geometry) -> Tokens:
        """Last Layer Fusion: all tokens in the order in which complete ones lie.

        The last block then needs no positions of its own per sample, and without windows its output no further
        permutation.
        """
        x = restore([tokens, *aside], geometry.order)
        return Tokens(x, geometry.complete(len(x)))

    def _tell(self, module: int, block: int, kept: Tokens, removed: Tokens | None) -> None:
        for listener in self.prune_listeners:
            left = kept.position[:, :0] if removed is None else removed.position - self.num_prefix_tokens
            listener(module, block, self._patches(kept), left)

    def _level(self, tokens: Tokens, aside: list[Tokens], grid: tuple[int, int], last: bool) -> SparseFeature:
        prefix, active = self.num_prefix_tokens, tokens.x.shape[1] - self.num_prefix_tokens
        complete = active == grid[0] * grid[1]
        joined = concat([tokens, *aside]) if aside else tokens
        x = self.norm(joined.x) if last else joined.x
        in_raster_order = complete and self.window_size is None
        return SparseFeature(
            x[:, prefix:],
            None if in_raster_order else self._patches(joined),
            grid,
            num_active=None if complete else active,
            prefix=x[:, :prefix] if prefix else None,
            patch_size=self.patch_size,
        )

    # --- auxiliary losses -------------------------------------------------------------------------------------

    def _start_auxiliary(self, learning: bool) -> None:
        if self._learns != learning:  # (an evaluation changes nothing, so that it exports)
            self._learns = learning
        if not learning:
            return  # an evaluation in between must not hide that what a step showed went unused
        if self._auxiliary:
            advice = "Add custom_hooks=[dict(type='CroprHook')] to the config"
            if self.aux_is_read:
                advice = (
                    "CroprHook reads them where the model is called with mode='loss', as train_step does: call it so"
                )
            raise RuntimeError(
                'CroprViT: the auxiliary predictions of the last training step were not used, so the pruners learn '
                f'nothing. {advice}, or add backbone.aux_losses(data_samples) to your loss after each forward. A '
                'pruner without parameters (RandomPruner) needs neither.'
            )
        self.has_weights, self.scorers_are_new = True, False
        self._auxiliary.start([self._pruner(module) for module in range(len(self.pruners))])

    def aux_losses(self, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Auxiliary losses of the last training forward.

        Args:
            data_samples: the batch's data samples, as the main head gets them.

        Returns:
            ``'loss_aux'``, the sum over all modules, to be added to the model's loss with weight 1, and
            ``'aux.{i}'``, the detached value of each module, for the log. Empty where there is nothing to train, and
            where the last forward was an evaluation.
        """
        return self._auxiliary.losses(data_samples) if self._learns else {}

    def forget_aux(self) -> None:
        """Drop what the last forward kept for its auxiliary losses; for forwards that are no training step."""
        self._auxiliary.forget()

    # --- speed and deployment ---------------------------------------------------------------------------------

    def compile_blocks(self, **options: Any) -> None:
        """Compile every block with ``torch.compile``, in place; names of parameters stay.

        Numbers of tokens are left open, so that neither the schedule nor the curriculum nor other image sizes
        compile anything anew.

        Args:
            options: for ``torch.compile``, such as ``mode='max-autotune-no-cudagraphs'``.

        Raises:
            RuntimeError: PyTorch 2.1 and windows, which its compiler cannot follow.
        """
        if self.window_size is not None and torch.__version__.startswith('2.1.'):
            raise RuntimeError(
                f'compile_blocks: window_size={self.window_size} and torch {torch.__version__}, which cannot compile '
                'attention within windows; newer versions of PyTorch can'
            )
        for block in self.blocks:
            block.compile(**{'dynamic': True, **options})

    def switch_to_deploy(self) -> None:
        """Fold the queries of every scorer into one vector and drop the auxiliary parts; same output."""
        for module in range(len(self.pruners)):
            self._pruner(module).switch_to_deploy()


def find_backbone(model: nn.Module) -> CroprViT:
    """The CroprViT inside a model.

    Raises:
        ValueError: the model has none.
    """
    for module in model.modules():
        if isinstance(module, CroprViT):
            return module
    raise ValueError(f'{type(model).__name__} has no CroprViT; set model.backbone.type to it')
