"""Draws docs/images/module.svg: what one module does with the tokens of a real forward pass.

    python docs/figures/module.py [OUT.svg]

The scorer is trained here for about two minutes, on the frozen sample ViT and scenes that are drawn as they are needed;
the picture shows a scene of another stream.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from cropr_mm import CroprViT
from cropr_mm.sample_data import CLASSES, SAMPLE_CHECKPOINT, Scene, draw_scene

matplotlib.use('svg')
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

DEPTH, BLOCK, KEEP, SIZE, PATCH = 8, 2, 1 / 3, 96, 8
SIDE = SIZE // PATCH
SCENE, STEPS, BATCH = 3, 200, 16
INK, QUIET, MAIN, SCORE, TRAIN = '#25283d', '#7d8296', '#3f51b5', '#c8424f', '#00796b'
EMPTY = '#eef0f6'


# --- data: scores and kept tokens of one image ------------------------------------------------------------------


def build_model() -> CroprViT:
    """The sample ViT with one untrained module, which prunes two thirds of the tokens at once."""
    pruner = dict(type='DifficultyPruner', num_classes=len(CLASSES))
    model = CroprViT(
        dict(family='vit', embed_dim=128, depth=DEPTH, num_heads=4, mlp_ratio=4.0),
        img_size=SIZE,
        patch_size=PATCH,
        pruning=dict(pruner=pruner, keep={BLOCK: KEEP}, round_to=1),
        init_cfg=dict(type='Pretrained', checkpoint=SAMPLE_CHECKPOINT),
    )
    model.init_weights()
    return model


def to_input(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1).float().sub(127.5).div(127.5)


def train_scorer(model: CroprViT) -> None:
    """Train the module alone; the rest keeps its weights, and nothing is pruned meanwhile."""
    model.requires_grad_(False)
    model.pruners.requires_grad_(True)
    model.train()
    model.pruning_progress = 0.0
    optimizer = torch.optim.AdamW(model.pruners.parameters(), lr=1e-3)
    for step in range(STEPS):
        scenes = [draw_scene(0, BATCH * step + i) for i in range(BATCH)]
        labels = [torch.from_numpy(scene.labels)[None].long() for scene in scenes]
        model(torch.stack([to_input(scene) for scene in scenes]))
        loss = model.aux_losses([BaseDataElement(gt_sem_seg=PixelData(data=label)) for label in labels])['loss_aux']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def route(model: CroprViT, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Scores (SIDE, SIDE) of the patches of a scene, and which of them (SIDE, SIDE) the module keeps."""
    scores, kept = torch.zeros(SIDE**2), torch.zeros(SIDE**2, dtype=torch.bool)

    def note_scores(pruner, inputs, _):
        tokens, _, context = inputs
        scores[tokens.position[0]] = pruner.score(tokens, context)[0].float()

    def note_kept(block, positions, _):
        kept[positions[0]] = True

    handle = model.pruners[str(BLOCK)].register_forward_hook(note_scores)
    model.prune_listeners.append(note_kept)
    model.eval()(to_input(scene)[None])
    handle.remove()
    return scores.view(SIDE, SIDE).numpy(), kept.view(SIDE, SIDE).numpy()


# --- picture ----------------------------------------------------------------------------------------------------


class Canvas:
    """A sheet of WIDTH × HEIGHT units on which panels of cells are drawn, y upwards."""

    WIDTH, HEIGHT, PANEL = 14.9, 6.75, 2.3

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.figure = plt.figure(figsize=(self.WIDTH, self.HEIGHT))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, self.WIDTH), ylim=(0, self.HEIGHT), aspect='equal')
        self.axes.axis('off')

    def text(self, x: float, y: float, text: str, size: float = 12.5, **style) -> None:
        self.axes.text(x, y, text, **{'ha': 'center', 'va': 'center', 'fontsize': size, 'color': INK, **style})

    def title(self, x: float, y: float, title: str, below: str, colour: str = MAIN) -> None:
        self.text(x, y + 0.31, title, 16.5, color=colour, weight='bold')
        self.text(x, y, below)

    def cells(self, x: float, y: float, veil: np.ndarray, colours: np.ndarray | None = None) -> None:
        """A grid of cells with its centre at (x, y): of the image under a veil of 0 to 1, or of colours."""
        left, bottom, cell = x - self.PANEL / 2, y - self.PANEL / 2, self.PANEL / SIDE
        if colours is None:
            extent = (left, left + self.PANEL, bottom, bottom + self.PANEL)
            self.axes.imshow(self.image, extent=extent, interpolation='none', zorder=1)
        for row, column in np.ndindex(SIDE, SIDE):
            corner = left + column * cell, bottom + (SIDE - 1 - row) * cell
            face = (*to_rgb(EMPTY), veil[row, column]) if colours is None else colours[row, column]
            self.axes.add_patch(Rectangle(corner, cell, cell, facecolor=face, edgecolor='white', lw=1.1, zorder=2))

    def box(self, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
        shape = f'round,pad=0,rounding_size={min(0.12, height / 3)}'
        corner = x - width / 2, y - height / 2
        face = tuple(0.9 + 0.1 * part for part in to_rgb(colour))
        patch = FancyBboxPatch(corner, width, height, boxstyle=shape, fc=face, ec=colour, lw=1.3, zorder=3)
        self.axes.add_patch(patch)
        self.text(x, y, text, 12, zorder=4, linespacing=1.3)

    def arrow(self, start, end, colour: str = INK, bend: str = 'arc3', style: str = '-', label: str = '') -> None:
        arrow = FancyArrowPatch(
            start,
            end,
            arrowstyle='-|>,head_length=5,head_width=2.6',
            connectionstyle=bend,
            color=colour,
            lw=1.6,
            linestyle=style,
            shrinkA=0,
            shrinkB=0,
            zorder=5,
        )
        self.axes.add_patch(arrow)
        if label:
            self.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.19, label, 12, color=colour)


def draw(image: np.ndarray, scores: np.ndarray, kept: np.ndarray, out: Path) -> None:
    """Draw the module: the main path above, pruned tokens below it, and what only training has in a dashed box."""
    canvas, middle, low = Canvas(image), 4.75, 1.6
    half, count, total = Canvas.PANEL / 2, int(kept.sum()), kept.size
    x_tokens, x_scores, x_kept, x_blocks, x_fused = 1.45, 4.75, 8.05, 10.75, 13.45
    above, gap, clear = middle + half + 0.28, 0.14, np.zeros(kept.shape)

    canvas.title(x_tokens, above, f'after block {BLOCK}', f'{total} patch tokens')
    canvas.cells(x_tokens, middle, clear)
    canvas.title(x_scores, above, 'score', r'$a_m = \bar q \cdot x_m$  (bright: high)', SCORE)
    canvas.cells(x_scores, middle, clear, plt.get_cmap('inferno')(_brightness(scores)))
    canvas.title(x_kept, above, 'prune', f'the {count} best are kept')
    canvas.cells(x_kept, middle, 1.0 * ~kept)
    canvas.title(x_blocks, above, '', f'{count} tokens: cheaper')
    for place, text in enumerate((f'block {BLOCK + 1}', '…', f'block {DEPTH - 2}')):
        canvas.box(x_blocks, middle + 0.62 - 0.62 * place, 1.6, 0.46, text, MAIN)
    canvas.title(x_fused, above, 'fuse', f'all {total} enter block {DEPTH - 1}')
    canvas.cells(x_fused, middle, 0.55 * ~kept)
    canvas.text(x_kept, low - half - 0.22, f'{total - count} are pruned', color=QUIET)
    canvas.cells(x_kept, low, 1.0 * kept)

    canvas.arrow((x_tokens + half + gap, middle), (x_scores - half - gap, middle))
    canvas.arrow((x_scores + half + gap, middle), (x_kept - half - gap, middle), label='top-k')
    canvas.arrow((x_kept + half + gap, middle), (x_blocks - 0.87, middle))
    canvas.arrow((x_blocks + 0.87, middle), (x_fused - half - gap, middle))
    canvas.arrow((x_kept, middle - half - gap), (x_kept, low + half + gap), QUIET)
    bend = 'angle,angleA=0,angleB=90,rad=14'
    canvas.arrow((x_kept + half + gap, low), (x_fused, middle - half - gap), QUIET, bend, (0, (4, 2)))
    canvas.text(x_blocks + 0.15, low + 0.2, 'unchanged until the last block', color=QUIET)

    _draw_training(canvas, x_tokens, x_scores, middle - half - gap, low)
    canvas.figure.savefig(out, metadata={'Date': None})
    plt.close(canvas.figure)


def _brightness(scores: np.ndarray) -> np.ndarray:
    """Scores as 0 to 1, all but the highest and lowest 2 % told apart."""
    low, high = np.percentile(scores, (2, 98))
    return 0.08 + 0.87 * np.clip((scores - low) / (high - low), 0, 1)


def _draw_training(canvas: Canvas, x_tokens: float, x_scores: float, top: float, y: float) -> None:
    left, width, height = 0.3, 5.9, 2.55
    frame = FancyBboxPatch(
        (left, y - height / 2), width, height, boxstyle='round,pad=0,rounding_size=0.18', fc='#00796b0a', ec=TRAIN,
        lw=1.3, ls=(0, (5, 3)),
    )  # fmt: skip
    canvas.axes.add_patch(frame)
    canvas.text((x_tokens + x_scores) / 2, y + height / 2 - 0.28, 'training only', 14, color=TRAIN, weight='bold')
    upper, lower = y + 0.28, y - 0.72
    canvas.box(x_scores, upper, 2.3, 0.62, 'learned queries $Q$\n$\\bar q = \\Sigma_n Q_n$', SCORE)
    canvas.box(x_tokens, upper, 1.75, 0.62, 'attention\nto the tokens', TRAIN)
    canvas.box(x_tokens, lower, 1.75, 0.62, 'auxiliary\nprediction', TRAIN)
    canvas.box(x_scores, lower, 2.3, 0.62, 'auxiliary loss\nagainst the labels', TRAIN)
    canvas.arrow((x_scores - 1.2, upper), (x_tokens + 0.93, upper), TRAIN)
    canvas.arrow((x_tokens, upper - 0.34), (x_tokens, lower + 0.34), TRAIN)
    canvas.arrow((x_tokens + 0.93, lower), (x_scores - 1.2, lower), TRAIN)
    canvas.arrow((x_tokens, top), (x_tokens, upper + 0.34), TRAIN)
    canvas.text(x_tokens + 0.12, (top + upper) / 2 + 0.42, 'stop-gradient', 12, color=TRAIN, ha='left')
    canvas.arrow((x_scores, upper + 0.34), (x_scores, top), SCORE)


def main(out: str = 'docs/images/module.svg') -> None:
    torch.manual_seed(0)
    plt.rcParams.update({'svg.hashsalt': 'cropr_mm', 'mathtext.fontset': 'cm', 'font.family': 'DejaVu Sans'})
    model, scene = build_model(), draw_scene(0, SCENE, 'validation')
    train_scorer(model)
    draw(scene.image, *route(model, scene), Path(out))


if __name__ == '__main__':
    main(*sys.argv[1:])
