"""What every selector has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class BasePruner(nn.Module):
    """Gives each patch token a score; the selection itself is not its business.

    One instance sits behind each pruned block.

    Args:
        embed_dim: channels D of a token.
        grid: (H, W), the patch grid at the training size.
        patch_size: pixels per patch side.
        deploy: build only what inference needs.

    CroprViT fills these four in; a config names only what a pruner adds.

    Attributes:
        reads_class_attention: whether :meth:`score` wants the attention of the class token in the block in front.
        learns: whether :meth:`predict` gives something to train.
    """

    reads_class_attention = False
    learns = False

    def __init__(self, embed_dim: int, grid: tuple[int, int], patch_size: int, deploy: bool = False) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.grid = grid
        self.patch_size = patch_size

    def score(
        self, patch_tokens: Tensor, index: Tensor, grid: tuple[int, int], class_attention: Tensor | None = None
    ) -> Tensor:
        """Score the patch tokens.

        Args:
            patch_tokens: (B, N, D).
            index: (B, N) int64, their raster positions.
            grid: (H, W), the patch grid of these images.
            class_attention: (B, N) float32, the attention weight that the class token gave each of them in the
                block in front, mean over the heads; None unless ``reads_class_attention``.

        Returns:
            (B, N) float32; higher stays.
        """
        raise NotImplementedError

    def predict(self, tokens: Tensor, index: Tensor) -> Any:
        """Auxiliary prediction in training, of a pruner that learns.

        Args:
            tokens: (B, P + N, D), all tokens that leave the block, prefix first.
            index: (B, N) int64, raster positions of the patch tokens.
        """
        raise NotImplementedError

    def aux_loss(self, prediction: Any, data_samples: Sequence[Any], grid: tuple[int, int]) -> Tensor:
        """Loss (scalar) of what :meth:`predict` returned; see :meth:`BaseAuxHead.loss`."""
        raise NotImplementedError

    def switch_to_deploy(self) -> None:
        """Drop what only training needs; the selection stays the same."""
