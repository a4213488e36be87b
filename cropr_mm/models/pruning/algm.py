"""Local, then global token merging (ALGM, arXiv 2406.09936): no training, no parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ...tokens import Removed, Tokens, rank, take_rows
from .base import BaseReducer, Context
from .tome import match_and_merge, merge


@MODELS.register_module()
class ALGMReducer(BaseReducer):
    """Merges neighbours first, tokens of the whole image later on (ALGM, section 4).

    The first reducer of a schedule merges whole cells of 2 × 2 patches, each into one token: those whose four tokens
    have the highest mean cosine similarity over all pairs. The reducers after it merge by bipartite soft matching, as
    :class:`ToMeReducer` does, by the cosine similarity of the tokens themselves. What cells cannot give, three tokens
    each, is matched, too. Means are weighted by how many positions each token stands for.

    ALGM was published with two, in the first block and half-way (``keep={0: 0.5, 5: 0.3}``), between attention and MLP;
    here they stand after the blocks of the schedule. Two more things differ: the schedule says how many tokens merge,
    where ALGM merges all above a threshold of similarity, as counts must not depend on the image; and blocks attend to
    a token as often as it has positions (ToMe's proportional attention), which the published code does not do.

    All positions come back with the value of the token that they share. Padding merges first, with padding alone.
    Not in models with windows.
    """

    fits_windows = False

    def forward(self, tokens: Tokens, count: int, context: Context) -> tuple[Tokens, list[Removed]]:
        removed = []
        height, width = context.grid
        if tokens.position.shape[1] == height * width:
            cells = min(count // 3, (height // 2) * (width // 2))
            if cells:
                tokens, part = merge(tokens, *matching_cells(tokens, cells, context))
                removed, count = [part], count - 3 * cells
        tokens, parts = match_and_merge(tokens, tokens.patches, count, context.padding)
        return tokens, removed + parts


def matching_cells(tokens: Tokens, count: int, context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of 2 × 2 patches whose tokens are most alike.

    Args:
        tokens: with all positions.
        count: cells, 0 < count ≤ (H // 2) · (W // 2); the last row or column of an odd grid is in none.
        context: the grid, and padding.

    Returns:
        As :func:`~cropr_mm.models.pruning.tome.matching`, with pairs = 3 · count: three of each cell merge into the one
        at its top left.
    """
    with torch.no_grad():
        row_of = tokens.position.argsort(dim=1)
        cells = cell_positions(context.grid, row_of.device)
        directions = F.normalize(tokens.patches.float(), dim=-1)
        directions = take_rows(directions, row_of.index_select(1, cells.flatten())).unflatten(1, cells.shape)
        # |Σ d|² = Σ |d|² + 2 · the sum over all 6 pairs
        alike = (directions.sum(dim=2).square().sum(dim=-1) - directions.square().sum(dim=(2, 3))) / 12
        if context.padding is not None:
            padding = context.padding[:, cells].sum(dim=-1)
            alike = alike.masked_fill(padding > 0, -torch.inf).masked_fill(padding == cells.shape[1], 2.0)
        chosen = cells[rank(alike)[:, :count]]
        source = row_of.gather(1, chosen[..., 1:].flatten(1))
        target = row_of.gather(1, chosen[..., :1].expand(-1, -1, 3).flatten(1))
        stay = rank(torch.ones_like(row_of, dtype=torch.float32).scatter(1, source, 0))
        return source, target, stay[:, : stay.shape[1] - source.shape[1]]


def cell_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Positions of the cells of 2 × 2 patches, (cells, 4), each in raster order."""
    height, width = grid
    row, column = torch.arange(height // 2, device=device), torch.arange(width // 2, device=device)
    corner = (2 * width * row.unsqueeze(1) + 2 * column).flatten()
    pair = torch.arange(2, device=device)
    return corner.unsqueeze(1) + (width * pair.unsqueeze(1) + pair).flatten()
