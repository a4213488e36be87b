"""Pictures of what was pruned after which block, next to prediction and ground truth."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import fileio
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..models.pruning.supervision.targets import image_labels
from ..utils.io import whole_file
from .routing import KEPT, Routed, predict_with_routing

SCORE = 0.3
"""Instances below this score are not drawn."""


@dataclass(frozen=True)
class TokenPicture:
    """What one row of a picture shows.

    Attributes:
        image: (H, W, 3) uint8 RGB, at the size that the model saw.
        exits: (h, w) integer, the block after which each patch was pruned, or ``KEPT``.
        patch_size: pixels per patch side.
        prediction, truth: data sample with ``sem_seg`` or ``instances`` (see :func:`take_pictures`), or None.
    """

    image: np.ndarray
    exits: np.ndarray
    patch_size: int
    prediction: dict[str, Any] | None = None
    truth: dict[str, Any] | None = None


def take_pictures(model: nn.Module, batch: dict[str, Any]) -> list[TokenPicture]:
    """Run a batch of a data loader through a model of mmseg or mmdet and keep what a picture needs.

    Args:
        model: in evaluation mode, with a CroprViT.
        batch: as a data loader gives it; the data samples name their image files.
    """
    return pictures_of(predict_with_routing(model, batch))


def pictures_of(routed: Routed, backend_args: dict[str, Any] | None = None) -> list[TokenPicture]:
    """Keep what pictures of a prediction need.

    Args:
        routed: with data samples that name their image files.
        backend_args: of mmengine's file backend, from which the images are read.
    """
    pictures = []
    for prediction, sample, exit_map in zip(routed.predictions, routed.samples, routed.deepest()):
        image = _image(sample, backend_args)
        pictures.append(
            TokenPicture(
                image,
                exit_map.numpy(),
                routed.backbone.patch_size,
                labels_of(prediction, 'pred', image.shape),
                labels_of(sample, 'gt', image.shape),
            )
        )
    return pictures


def _image(sample: Any, backend_args: dict[str, Any] | None) -> np.ndarray:
    from PIL import Image

    height, width = sample.img_shape[:2]
    with Image.open(io.BytesIO(fileio.get(sample.img_path, backend_args))) as file:
        return np.asarray(file.convert('RGB').resize((width, height), Image.Resampling.BICUBIC))


def labels_of(sample: Any, kind: str, shape: Sequence[int]) -> dict[str, Any] | None:
    """Label map, instances or classes of a data sample, at the size of the image.

    Args:
        sample: of mmseg, mmdet or mmpretrain.
        kind: ``'pred'`` or ``'gt'``.
        shape: (H, W) of the image that the model saw, without padding.

    Returns:
        ``sem_seg`` (H, W) integer; or ``boxes`` (K, 4), ``labels`` (K,), ``masks`` (K, H, W) or None and ``scores``
        (K,) or None, of instances with a score of :data:`SCORE` or more; or ``classes`` (C,), the share of each class
        (of a label, the classes (K,) as ``labels`` alone). None where the sample has none of them.
    """
    if not isinstance(sample, BaseDataElement):
        return None
    sample, size = sample.cpu(), tuple(shape[:2])
    if f'{kind}_sem_seg' in sample:
        labels = getattr(sample, f'{kind}_sem_seg')
        label = labels.data if hasattr(labels, 'data') else labels.sem_seg  # mmseg, mmdet
        label = label.reshape(1, 1, *labels.shape[-2:])
        resized = torch.nn.functional.interpolate(label.float(), size, mode='nearest')
        return dict(sem_seg=resized[0, 0].numpy().astype(int))
    if kind == 'pred' and 'pred_score' in sample:
        return dict(classes=sample.pred_score.detach().double().numpy())
    if kind == 'gt' and 'gt_label' in sample:
        return dict(labels=np.asarray(image_labels(sample)).reshape(-1))
    instances = sample.get(f'{kind}_instances')
    if instances is None or 'bboxes' not in instances:  # an image without labels
        return None
    if 'scores' in instances:
        instances = instances[instances.scores >= SCORE]
    boxes = instances.bboxes
    boxes = np.asarray(boxes.tensor if hasattr(boxes, 'tensor') else boxes, dtype=float).reshape(-1, 4)
    masks = instances.get('masks')
    masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks
    if isinstance(masks, Tensor):
        masks = masks.numpy()
    size_of_masks = None if masks is None else tuple(masks.shape[-2:])
    if masks is not None and len(masks) and size_of_masks != size:
        planes = torch.from_numpy(masks.astype(np.float32))[None]
        masks = torch.nn.functional.interpolate(planes, size, mode='nearest')[0].numpy() > 0
    file = tuple(sample.ori_shape[:2])
    if kind == 'pred' or size_of_masks != size:  # mmdet's predictions, and the labels of its tests: as in the file
        boxes = boxes * np.array([size[1] / file[1], size[0] / file[0]] * 2)
    return dict(boxes=boxes, masks=masks, labels=np.asarray(instances.labels), scores=instances.get('scores'))


def draw_pictures(
    pictures: Sequence[TokenPicture],
    out: str | Path,
    blocks: Sequence[int],
    meta: Mapping[str, Any] | None = None,
    pixels: int = 280,
) -> Path:
    """Draw rows of image | tokens | prediction | ground truth and save them.

    Args:
        pictures: one per row, of :func:`take_pictures`.
        out: file to write; its suffix says the format.
        blocks: blocks that a pruner stands after, ascending (``backbone.schedule.blocks``).
        meta: ``classes`` and ``palette`` (RGB) of the data set.
        pixels: width of a panel.

    Raises:
        ValueError: nothing to draw.
    """
    if not pictures:
        raise ValueError('draw_pictures: pictures is empty')
    figure = _figure(pictures, blocks, meta, pixels)
    with whole_file(out) as partial:
        figure.savefig(partial)
    return Path(out)


def render_picture(
    picture: TokenPicture, blocks: Sequence[int], meta: Mapping[str, Any] | None = None, pixels: int = 280
) -> np.ndarray:
    """As :func:`draw_pictures`, of one row, as an image (H, W, 3) uint8 RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(_figure([picture], blocks, meta, pixels))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(
    pictures: Sequence[TokenPicture], blocks: Sequence[int], meta: Mapping[str, Any] | None, pixels: int
) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    meta = meta or {}
    classes = list(meta.get('classes') or [])
    palette = np.array(meta.get('palette') or colormaps['tab20'](range(20))[:, :3] * 255, dtype=float) / 255
    names = ['image', 'tokens']
    names += [
        name
        for name, key in (('prediction', 'prediction'), ('ground truth', 'truth'))
        if any(getattr(picture, key) is not None for picture in pictures)
    ]
    colours = colormaps['plasma'](np.linspace(0.02, 0.92, max(len(blocks), 1)))
    ratio = max(picture.image.shape[0] / picture.image.shape[1] for picture in pictures)
    inches = pixels / 100
    width = len(names) * inches
    exits = [Patch(alpha=0, label='pruned after block')]
    exits += [Patch(facecolor=colour, label=f'{block}') for block, colour in zip(blocks, colours)]
    exits.append(Patch(facecolor='white', edgecolor='grey', label='kept (clear)'))
    legends = [_Legend(exits, 9, width)]
    if classes and len(classes) <= 20 and len(names) > 2:
        legends.append(_Legend([Patch(facecolor=c, label=n) for c, n in zip(palette, classes)], 8, width))
    legend_inches = 0.05 + sum(legend.inches for legend in legends)
    height = len(pictures) * inches * ratio + 0.3 + legend_inches
    figure = Figure(figsize=(width, height), dpi=100, facecolor='white')
    axes = figure.subplots(
        len(pictures),
        len(names),
        squeeze=False,
        gridspec_kw=dict(
            left=0.006, right=0.994, top=1 - 0.3 / height, bottom=legend_inches / height, wspace=0.025, hspace=0.025
        ),
    )
    for row, picture in zip(axes, pictures):
        for axis, name in zip(row, names):
            _draw_panel(axis, name, picture, list(blocks), colours, palette)
    for axis, name in zip(axes[0], names):
        axis.set_title(name, fontsize=11, pad=4)
    top = legend_inches
    for legend in legends:
        figure.legend(
            handles=legend.handles,
            loc='upper center',
            bbox_to_anchor=(0.5, top / height),
            ncols=legend.columns,
            title=legend.title,
            title_fontsize=legend.size,
            fontsize=legend.size,
            frameon=False,
            handlelength=1.1,
            columnspacing=1.0,
        )
        top -= legend.inches
    return figure


class _Legend:
    """Entries of a legend, in as many lines as fit the width of a picture; one without a patch is the title."""

    def __init__(self, handles: list[Any], size: int, width: float) -> None:
        self.handles, self.size = handles, size
        needed = sum(0.34 + 0.0088 * size * len(handle.get_label()) for handle in handles)  # in inches, roughly
        lines = math.ceil(needed / (width - 0.2))
        self.title = None
        if lines > 1 and handles[0].get_alpha() == 0:
            self.title, self.handles = handles[0].get_label(), handles[1:]
        self.columns = math.ceil(len(self.handles) / lines)
        self.inches = 0.17 + 0.023 * size * (lines + (self.title is not None))


def _draw_panel(axis: Any, name: str, picture: TokenPicture, blocks: list[int], colours: Any, palette: Any) -> None:
    height, width = picture.image.shape[:2]
    extent = (0, width, height, 0)
    labels = dict(prediction=picture.prediction, **{'ground truth': picture.truth}).get(name)
    if labels is not None and 'sem_seg' in labels:
        rgb = np.zeros((*labels['sem_seg'].shape, 3))
        known = (labels['sem_seg'] >= 0) & (labels['sem_seg'] < len(palette))
        rgb[known] = palette[labels['sem_seg'][known]]
        axis.imshow(rgb, extent=extent, interpolation='nearest')
    else:
        axis.imshow(picture.image, extent=extent, interpolation='bicubic')
    if name == 'tokens':
        rows, columns = picture.exits.shape
        overlay = np.zeros((rows, columns, 4))
        for block, colour in zip(blocks, colours):
            overlay[picture.exits == block] = (*colour[:3], 0.78)
        overlay[picture.exits == KEPT] = 0
        axis.imshow(
            overlay, extent=(0, columns * picture.patch_size, rows * picture.patch_size, 0), interpolation='nearest'
        )
    elif labels is not None and 'boxes' in labels:
        _draw_instances(axis, labels, extent, palette)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_instances(axis: Any, labels: dict[str, Any], extent: tuple[int, ...], palette: Any) -> None:
    from matplotlib.patches import Rectangle

    for i, (box, label) in enumerate(zip(labels['boxes'], labels['labels'])):
        colour = palette[label % len(palette)]
        if labels['masks'] is not None:
            overlay = np.empty((*labels['masks'][i].shape, 4))
            overlay[...] = (*colour, 0)
            overlay[..., 3] = 0.6 * labels['masks'][i]
            axis.imshow(overlay, extent=extent, interpolation='nearest')
        x0, y0, x1, y1 = box
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
