"""The plain Vision Transformer: every token through every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoint import load_init_cfg, resize_position_embedding
from ..checkpoint.state_dict import begin_loading, end_loading
from ..tokens import SparseFeature, Tokens
from ..utils.checks import check_flag, check_integer, check_number, is_integer, is_type
from ..utils.sizes import surely
from .archs import resolve_arch
from .layers import Block, PatchEmbed, init_vit_weights
from .positions import Positions
from .rotary import rotary_angles

Observer = Callable[[Tensor, Tensor, int], Any]
"""Called with the queries and keys (B, P + M, heads, head_dim) of an attention and the number P of prefix tokens."""


@MODELS.register_module()
class PlainViT(BaseModule):
    """Plain Vision Transformer, dense.

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
            are not computed and do not train.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0; or that of each block.
        final_norm: whether the output of the last block is normalised.
        window_size: side of a window in patches. Blocks then attend within windows of the patch grid (ViTDet, arXiv
            2203.16527; EVA-02's detectors). Prefix tokens attend to all tokens, and all to them. None: global
            attention.
        global_blocks: with ``window_size``: the blocks that attend to all tokens all the same.
        with_cp: recompute each block in the backward pass instead of storing what is inside it: less memory,
            more time.
        frozen_stages: -1 trains everything, 0 freezes the embedding, k also the first k blocks; all of them: the
            final norm too. Frozen parts stay in evaluation mode.
        init_cfg: ``dict(type='Pretrained', checkpoint=path)`` loads published weights, from any of the layouts in
            :data:`~cropr_mm.checkpoint.layouts.LAYOUTS`; ``prefix`` chooses where a file holds several models.

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
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if isinstance(init_cfg, str):
            raise ValueError(f"init_cfg={init_cfg!r}; dict(type='Pretrained', checkpoint={init_cfg!r}) is expected")
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch)
        self.embed_dims, self.depth = self.arch.embed_dim, self.arch.depth
        self.patch_size = check_integer('patch_size', patch_size)
        self.in_channels = check_integer('in_channels', in_channels)
        self.grid = self.grid_of(*_check_sides(img_size))
        self.num_prefix_tokens = self.arch.num_prefix_tokens
        self.out_indices = self._resolve_blocks('out_indices', out_indices)
        self.window_size = None if window_size is None else check_integer('window_size', window_size)
        self.global_blocks = self._resolve_blocks('global_blocks', global_blocks, at_least=0)
        if self.global_blocks and window_size is None:
            raise ValueError(f'global_blocks={global_blocks!r} without window_size; all blocks are global then')
        self.with_cp = check_flag('with_cp', with_cp)
        self.frozen_stages = check_integer('frozen_stages', frozen_stages, -1, self.depth)
        drop_path_rates = self._resolve_drop_path(drop_path_rate)
        self._build_embedding()
        self._build_blocks(drop_path_rates, check_flag('final_norm', final_norm))
        self._freeze()
        self.register_load_state_dict_post_hook(end_loading)
        # None: as built; True: loaded or trained; False: as built, and a checkpoint of another backbone was loaded.
        self.has_weights: bool | None = None

    # --- construction -----------------------------------------------------------------------------------------

    def _resolve_blocks(self, key: str, blocks: int | Sequence[int], at_least: int = 1) -> tuple[int, ...]:
        listed: tuple[Any, ...] = (blocks,)
        if isinstance(blocks, Sequence) and not isinstance(blocks, str):
            listed = tuple(blocks)
        valid = all(is_integer(i) and -self.depth <= i < self.depth for i in listed)
        resolved = tuple(i % self.depth for i in listed) if valid else ()
        if not valid or len(resolved) < at_least or list(resolved) != sorted(set(resolved)):
            raise ValueError(
                f'{key}={blocks!r}; different ascending blocks of the {self.depth} '
                f'(0 to {self.depth - 1}, or negative) are expected'
            )
        return resolved

    def _resolve_drop_path(self, rate: float | Sequence[float]) -> list[float]:
        if not isinstance(rate, Sequence) or isinstance(rate, str):
            last = check_number('drop_path_rate', rate, least=0, below=1)
            return torch.linspace(0, last, self.depth, device='cpu').tolist()
        if len(rate) != self.depth:
            raise ValueError(f'drop_path_rate has {len(rate)} numbers; one, or one for each of {self.depth} blocks')
        return [float(check_number(f'drop_path_rate[{i}]', one, least=0, below=1)) for i, one in enumerate(rate)]

    def _build_embedding(self) -> None:
        dim, registers = self.embed_dims, self.arch.num_registers
        positions = self.arch.num_embedded_prefix_tokens + self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbed(self.patch_size, self.in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if self.arch.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim)) if self.arch.position_embedding else None

    def _build_blocks(self, drop_path_rates: list[float], final_norm: bool) -> None:
        self.blocks = nn.ModuleList(Block(self.arch, rate) for rate in drop_path_rates)
        norm = nn.LayerNorm(self.embed_dims, eps=self.arch.norm_eps)
        self.norm: nn.Module = norm if final_norm else nn.Identity()
        for part in (self.patch_embed, self.blocks):
            part.apply(init_vit_weights)
        for embedding in (self.pos_embed, self.cls_token, self.reg_token):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02)

    def _freeze(self) -> None:
        last = self.out_indices[-1]
        if last < self.depth - 1:  # what is not computed has no gradient either, and DDP expects none of it
            for part in (*list(self.blocks)[last + 1 :], self.norm):
                part.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        for parameter in self.parameters(recurse=False):  # [CLS] and register tokens, positional embedding
            parameter.requires_grad_(False)
        parts = [self.patch_embed, *list(self.blocks)[: self.frozen_stages]]
        if self.frozen_stages == self.depth:
            parts.append(self.norm)
        for part in parts:
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PlainViT:
        super().train(mode)
        self._freeze()
        return self

    # --- weights ----------------------------------------------------------------------------------------------

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
        # A positional embedding of 64 tokens may be of 8 × 8 or of 4 × 16 patches; loading into another grid must know.
        if prefix[:-1] in getattr(destination, '_metadata', {}):
            destination._metadata[prefix[:-1]]['grid'] = self.grid

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        self._loading = begin_loading(self, state_dict, prefix, local_metadata, *lists)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def _check_weights(self) -> None:
        """Raise RuntimeError where an evaluation would be one of random weights although a checkpoint was loaded."""
        if self.training:
            if torch.is_grad_enabled():
                self.has_weights = True
        elif self.has_weights is False:
            raise RuntimeError(
                f'{type(self).__name__}: the checkpoint that was loaded is of another backbone, and this one has not '
                'trained, so its outputs would be random. Load a checkpoint of this model'
            )

    # --- forward ----------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> tuple[SparseFeature, ...]:
        """Features of the blocks ``out_indices``.

        Args:
            images: (B, 3, H, W) with any H and W; padded to whole patches on the right and at the bottom.

        Returns:
            One SparseFeature per level.
        """
        self._check_weights()
        x, grid = self.embed(images)
        positions = Positions(self.arch, grid, self.window_size, x.device)
        tokens, outputs = positions.arrange(x), []
        for i in range(self.out_indices[-1] + 1):
            tokens, _ = self.run_block(i, tokens, positions)
            if i in self.out_indices:
                outputs.append(self.output(i, tokens, grid))
        return tuple(outputs)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, 3, H, W) → prefix and patch tokens (B, P + N, D) in raster order, and the patch grid (H, W).

        Raises:
            ValueError: no batch of images.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != self.in_channels:
            found = f'shape {tuple(images.shape)}' if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f'{type(self).__name__}: images of {found}; a batch (B, {self.in_channels}, H, W) is expected'
            )
        x, grid = self.patch_embed(images)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1)
        if self.pos_embed is not None:
            embedded = self.arch.num_embedded_prefix_tokens
            values = resize_position_embedding(self.pos_embed, self.grid, grid, embedded)
            x = x + F.pad(values, (0, 0, self.num_prefix_tokens - embedded, 0))  # zeros for the others
        return x, grid

    def run_block(
        self, block: int, tokens: Tokens, positions: Positions, observe: Observer | None = None
    ) -> tuple[Tokens, Any]:
        """Run one block on the current tokens.

        Args:
            block: its number.
            tokens: the current tokens.
            positions: of the grid.
            observe: called in its attention.

        Returns:
            The same tokens, updated, and what ``observe`` returned, or None.
        """
        seen: list[Any] = []

        def watch(q: Tensor, k: Tensor) -> None:
            assert observe is not None
            seen.append(observe(q, k, tokens.num_prefix))

        windowed = self.window_size is not None and block not in self.global_blocks
        windows = positions.windows(tokens) if windowed else None
        inputs = (tokens.x, positions.rotary(tokens, windowed), windows)
        more: dict[str, Any] = {} if observe is None else dict(watch=watch)
        if tokens.size is not None:
            more['size'] = tokens.size
        if self.with_cp and self.training and torch.is_grad_enabled():
            x = checkpoint(self.blocks[block], *inputs, use_reentrant=False, **more)
        else:
            x = self.blocks[block](*inputs, **more)
        return tokens._replace(x=x), seen[0] if seen else None

    def output(self, block: int, tokens: Tokens, grid: tuple[int, int]) -> SparseFeature:
        """What a block's output is to a neck; that of the last block is normalised."""
        if block == self.depth - 1:
            tokens = tokens._replace(x=self.norm(tokens.x))
        in_raster_order = surely(tokens.position.shape[1] == grid[0] * grid[1]) and self.window_size is None
        return SparseFeature(
            tokens.patches,
            None if in_raster_order else tokens.position,
            grid,
            prefix=tokens.prefix if tokens.num_prefix else None,
            patch_size=self.patch_size,
        )

    # --- geometry and speed -----------------------------------------------------------------------------------

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (H, W) of an image of ``height`` × ``width`` pixels."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def rotary_angles(self, grid: tuple[int, int]) -> Tensor | None:
        """Cosine and sine (N, head_dim / 2, 2) by which each patch token of a grid is turned; None without RoPE."""
        angles = rotary_angles(self.arch, grid, torch.device('cpu'))
        return None if angles is None else angles[self.num_prefix_tokens :]

    def compile_blocks(self, **options: Any) -> None:
        """Compile every block with ``torch.compile``, in place; names of parameters stay.

        Numbers of tokens are left open, so that other image sizes (and, where tokens are removed, other schedules)
        compile nothing anew.

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


def _check_sides(img_size: Any) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, (list, tuple)) else (img_size, img_size)
    if len(sides) != 2:
        raise ValueError(f'img_size={img_size!r}; an integer or (H, W) is expected')
    return check_integer('img_size', sides[0]), check_integer('img_size', sides[1])
