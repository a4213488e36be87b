"""What costs less than a dense model without pruning: fewer blocks, larger patches, smaller images.

Each changes the config of a dense segmentor, and trains as that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config

from ..models.archs import resolve_arch
from ..utils.checks import is_type
from ..utils.libraries import is_segmentation


def _blocks(share: int) -> Callable[[Config], None]:
    """The first blocks alone, that share of them in percent."""

    def put(cfg: Config) -> None:
        arch = cfg.model.backbone.arch
        settings = dict(arch) if isinstance(arch, Mapping) else dict(family=arch)
        settings['depth'] = max(1, round(resolve_arch(arch).depth * share / 100))
        cfg.merge_from_dict({'model.backbone.arch': settings})
        if is_type(cfg.model.backbone.get('init_cfg'), 'Pretrained'):
            cfg.model.backbone.init_cfg.first_blocks = True

    return put


def _patch(percent: int) -> Callable[[Config], None]:
    """Larger patches, so that there are fewer; weights of the embedding are resized as they are loaded."""

    def put(cfg: Config) -> None:
        cfg.model.backbone.patch_size = round(cfg.model.backbone.get('patch_size', 16) * percent / 100)

    return put


def _resolution(percent: int) -> Callable[[Config], None]:
    """Images, their labels in training, crops and windows of that share of the side. Labels are tested as they are."""

    def put(cfg: Config) -> None:
        if not is_segmentation(cfg):
            raise ValueError('dense-resolution: a config of mmsegmentation is expected')

        def scaled(size: Any) -> Any:
            if isinstance(size, (list, tuple)):
                return type(size)(scaled(side) for side in size)
            return round(size * percent / 100)

        resize = dict(type='Resize', scale_factor=percent / 100, keep_ratio=True)
        train = cfg.train_dataloader.dataset
        train.pipeline = [*train.pipeline[:-1], resize, train.pipeline[-1]]  # before it is packed
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            pipeline = loader.dataset.pipeline
            if not is_type(pipeline[0], 'LoadImageFromFile'):
                raise ValueError(f'dense-resolution: pipeline[0]={pipeline[0]!r}; LoadImageFromFile is expected')
            # Labels that are loaded after it stay as they are, and predictions are brought to their size.
            loader.dataset.pipeline = [pipeline[0], resize, *pipeline[1:]]
        model = cfg.model
        model.backbone.img_size = scaled(model.backbone.img_size)
        for part, key in ((model.get('data_preprocessor'), 'size'), *((model.get('test_cfg'), k) for k in _WINDOW)):
            if part is not None and part.get(key) is not None:
                part[key] = scaled(part[key])

    return put


_WINDOW = ('crop_size', 'stride')

DENSE_CHANGES: dict[str, Callable[[Config], None]] = {
    **{f'blocks{share}': _blocks(share) for share in (75, 62, 50)},
    **{f'patch{percent}': _patch(percent) for percent in (125, 150, 200)},
    **{f'resolution{percent}': _resolution(percent) for percent in (75, 62, 50)},
}
"""What may follow ``dense``, and in which direction it is cheaper, in percent."""
