"""One training step and one prediction of a stock model, shrunken, with a small CroprViT in place of its backbone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData, PixelData

from cropr_mm import CroprHook, CroprViT, swap_backbone
from cropr_mm.cli.model import build_model

from .table import Entry

# Numbers that a stock head has by the hundred, and what a test needs of them. Channels stay as they are.
FEWER = dict(
    num_queries=20,
    num_points=128,  # sampled in losses of masks
    num_matching_queries=20,
    num_proposals=20,
    nms_pre=50,
    max_per_img=20,
)


REDUCER = os.environ.get('CROPR_TEST_REDUCER', 'DifficultyPruner')
LEARNS = REDUCER == 'DifficultyPruner'


class KeepGradients(OptimWrapper):
    """Leaves the gradients of the step in place, to be looked at."""

    def zero_grad(self, **kwargs: Any) -> None:
        pass


def config_folder(library: Any) -> Path:
    return Path(library.__file__).parent / '.mim' / 'configs'


def config_file(configs: Path, folder: str, entry: Entry) -> Path:
    return configs / folder.split(',')[0] / f'{entry.config}.py'


def swapped(configs: Path, folder: str, entry: Entry) -> Config:
    """A stock config, shrunken, its backbone swapped by the function that users call."""
    cfg = Config.fromfile(str(config_file(configs, folder, entry)))
    shrink(cfg.get('model') or ConfigDict(), entry.side)
    options = {key: v.format(configs=configs) if isinstance(v, str) else v for key, v in entry.options.items()}
    cfg.merge_from_dict(options)
    pruner = dict(type=REDUCER)
    if LEARNS:
        pruner['num_classes'] = num_classes(cfg.get('model'))
    arch = dict(family='vit', embed_dim=32, depth=4, num_heads=2)
    return swap_backbone(cfg, dict(arch=arch, img_size=entry.side, pruning=dict(pruner=pruner, rate=16)))


def shrink(settings: Any, side: int, name: str = '') -> None:
    """Make the numbers of ``FEWER`` small wherever they stand, and take images to be of ``side`` pixels."""
    if isinstance(settings, list):
        for entry in settings:
            shrink(entry, side, name)
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if type(value) is int and (key in FEWER or (key == 'num_layers' and name.endswith(('encoder', 'decoder')))):
            settings[key] = min(value, FEWER.get(key, 2))
        elif value == 'MMSyncBN':
            settings[key] = 'SyncBN'  # mmcv's cannot be built outside of a process group
        elif key == 'init_cfg' and 'Pretrained' in str(value):
            settings[key] = None  # would be downloaded
        elif key == 'num_cp':
            settings[key] = 0
        elif key == 'num' and name.endswith('sampler'):
            settings[key] = 32
        elif key == 'data_preprocessor' and value:
            value['batch_augments'] = None
            if 'Seg' in str(value.get('type')):
                value.pop('size_divisor', None)
                value['size'] = (side, side)
        elif key == 'test_cfg' and isinstance(value, dict) and value.get('mode') == 'slide':
            value.update(crop_size=(side, side), stride=(side, side))
        elif key != 'backbone':
            shrink(value, side, key)


def num_classes(settings: Any) -> int:
    """The least number of classes that any part of a model knows, from 2 on; 1 where none knows more."""
    return min((n for n in _numbers_of_classes(settings) if n > 1), default=1)


def _numbers_of_classes(settings: Any) -> Iterator[int]:
    if isinstance(settings, dict):
        if isinstance(settings.get('num_classes'), int):
            yield settings['num_classes']
        settings = list(settings.values())
    for value in settings if isinstance(settings, (list, tuple)) else ():
        yield from _numbers_of_classes(value)


def meta(height: int, width: int, side: int) -> dict[str, Any]:
    pixels = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
    pixels.update(batch_input_shape=(side, side), border=(0, height, 0, width))  # the border is for CornerNet
    return dict(pixels, scale_factor=(1.0, 1.0), flip=False, flip_direction=None, img_id=0, img_path='none.png')


def seg_batch(cfg: Config, entry: Entry) -> dict[str, Any]:
    """Two images and label maps, as mmsegmentation's data sets give them."""
    from mmseg.structures import SegDataSample

    classes, side, samples = num_classes(cfg.model), entry.side, []
    for _ in range(2):
        label = F.interpolate(torch.randint(classes, (1, 1, 4, 4)).float(), (side, side))[0].long()
        if (
            'class_weight' not in cfg.pretty_text
        ):  # mmseg's loss with class weights fails where a pixel is to be ignored
            label[:, :8] = 255
        sample = SegDataSample(metainfo=meta(side, side, side), gt_sem_seg=PixelData(data=label))
        sample.gt_edge_map = PixelData(data=(torch.rand(1, side, side) < 0.1).long())  # GenerateEdge, for PIDNet
        samples.append(sample)
    return dict(inputs=list(torch.randint(256, (2, 3, side, side), dtype=torch.uint8)), data_samples=samples)


def det_batch(cfg: Config, entry: Entry) -> dict[str, Any]:
    """Two images with boxes, and with masks and label maps where the config loads them, as mmdetection's data sets."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import PolygonMasks

    side, text = entry.side, cfg.pretty_text
    classes, inputs, samples = num_classes(cfg.model), [], []
    for height in (side, side if entry.even else side * 3 // 4):
        boxes = torch.tensor([[0.06, 0.06, 0.5, 0.55], [0.4, 0.25, 0.95, 0.7], [0.55, 0.08, 0.8, 0.3]]) * side
        found = InstanceData(bboxes=HorizontalBoxes(boxes), labels=torch.randint(classes, (3,)))
        masks = PolygonMasks([[_ellipse(box)] for box in boxes.numpy()], height, side)
        bitmap = masks.to_bitmap()
        bitmap.masks = bitmap.masks.astype('uint8')  # as annotations load them; OpenCV 4 pads nothing else
        sample = DetDataSample(metainfo=meta(height, side, side), gt_instances=found)
        sample.ignored_instances = InstanceData(bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0).long())
        if 'with_mask=True' in text or 'LoadPanopticAnnotations' in text:
            found.masks = masks if 'poly2mask=False' in text else bitmap
        if 'with_seg=True' in text or 'LoadPanopticAnnotations' in text:
            label = torch.full((1, height, side), classes, dtype=torch.uint8)  # two kinds of stuff, things on top
            label[:, : height // 2] += 1
            for thing, mask in zip(found.labels, masks.to_ndarray()):
                label[0][torch.from_numpy(mask).bool()] = int(thing)
            sample.gt_sem_seg = PixelData(sem_seg=label)
        if 'LoadProposals' in text:
            sample.proposals = InstanceData(bboxes=boxes + 4, scores=torch.rand(3))
        inputs.append(torch.randint(256, (3, height, side), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def _ellipse(box: np.ndarray) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    x = (box[0] + box[2]) / 2 + np.cos(angles) * (box[2] - box[0]) / 2
    y = (box[1] + box[3]) / 2 + np.sin(angles) * (box[3] - box[1]) / 2
    return np.stack([x, y], 1).flatten()


def step(cfg: Config, batch: Callable[[], dict[str, Any]]) -> tuple[dict[str, float], list[Any]]:
    """Train for one step with the hook's auxiliary losses, check it, and predict the first image.

    Returns:
        The log of the step, and a list with the prediction.
    """
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    model.train()
    MessageHub.get_current_instance().update_info('epoch', 0)  # as the runner does
    CroprHook(ramp=0).attach(model)
    backbones = [m for m in model.modules() if isinstance(m, CroprViT)]
    clip = (cfg.get('optim_wrapper') or {}).get('clip_grad')
    optim = KeepGradients(torch.optim.SGD(model.parameters(), lr=1e-6), clip_grad=clip)
    log = {name: float(value) for name, value in model.train_step(batch(), optim).items()}
    assert all(math.isfinite(value) for value in log.values()), log
    assert not LEARNS or log['cropr.loss_aux'] > 0, log
    heads = [value for name, value in log.items() if 'loss' in name and name not in ('loss', 'cropr.loss_aux')]
    assert sum(heads) > 0, log
    for name, parameter in backbones[0].named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(
        p.grad.abs().sum() > 0 for p in (backbones[0].patch_embed.proj.weight, backbones[0].blocks[0].mlp.fc1.weight)
    )
    assert not LEARNS or all(pruner.queries.grad.abs().sum() > 0 for pruner in backbones[0].pruners.values())
    model.eval()
    with torch.no_grad():
        return log, model.test_step({key: values[:1] for key, values in batch().items()})
