"""Are the files there that a config names? Checked before a model is built. And images in place of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.checks import is_type


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """See that the files of the data sets are there, before a model is built.

    Paths that are not on this machine's disk (``s3://``, other backends) are left to mmengine.

    Args:
        cfg: the config. ``cfg.data_hint``, where there is one, is a sentence that says where the data come from.
        loaders: keys of the data loaders that the run will use.

    Raises:
        FileNotFoundError: names the config key, the path and the hint.
    """
    for loader in loaders:
        for key, dataset in _datasets(cfg.get(loader) or {}, loader):
            for name, path in _dataset_paths(dataset):
                if not os.path.exists(path):
                    raise _missing(f'{key}.{name}', path, cfg.get('data_hint'))


def _missing(key: str, path: str, hint: str | None) -> FileNotFoundError:
    return FileNotFoundError(f'{key}: {os.path.abspath(path)} does not exist{f". {hint}" if hint else ""}')


def _datasets(holder: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All data sets inside a loader or a wrapper (concatenated, repeated, ...)."""
    if isinstance(holder.get('dataset'), dict):
        yield from _datasets(holder['dataset'], f'{key}.dataset')
    elif isinstance(holder.get('datasets'), (list, tuple)):
        for i, part in enumerate(holder['datasets']):
            yield from _datasets(part, f'{key}.datasets[{i}]')
    else:
        yield key, holder


def _dataset_paths(dataset: Any) -> Iterator[tuple[str, str]]:
    if dataset.get('backend_args') or dataset.get('file_client_args'):
        return
    root = dataset.get('data_root') or ''
    paths = {
        'data_root': root,
        'ann_file': dataset.get('ann_file') or '',
        **_by_name(dataset.get('data_prefix') or {}, 'data_prefix'),
    }
    for name, path in paths.items():
        if isinstance(path, str) and path and '://' not in root + path:
            yield name, path if name == 'data_root' else os.path.join(root, path)


def _by_name(setting: Any, key: str) -> dict[str, Any]:
    """A setting that is one value (mmpretrain's ``data_prefix='train'``), or several by name."""
    if isinstance(setting, dict):
        return {f'{key}.{name}': value for name, value in setting.items()}
    return {key: setting}


def check_weights(cfg: Config) -> None:
    """See that the checkpoints from which the parts of the model start are there, before a model is built.

    Addresses (``https://``, ``torchvision://``, …) are left to what loads them.

    Args:
        cfg: the config. ``cfg.checkpoint_hint``, where there is one, is a sentence that says where they come from.

    Raises:
        FileNotFoundError: names the config key, the path and the hint.
    """
    for key, settings in _pretrained(cfg.get('model') or {}, 'model'):
        path = settings.get('checkpoint')
        if isinstance(path, str) and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
            raise _missing(f'{key}.checkpoint', os.path.expanduser(path), cfg.get('checkpoint_hint'))


def _pretrained(part: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All initialisations from a checkpoint inside a model's config."""
    if is_type(part, 'Pretrained', 'PretrainedInit'):
        yield key, part
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from _pretrained(value, f'{key}.{name}')
    elif isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            yield from _pretrained(value, f'{key}[{i}]')


def check_images(option: str, files: Sequence[str]) -> None:
    """See that the files that an option names are images, before a model is built.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: one is no image that can be read.
    """
    from PIL import Image

    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f'{option} {file!r}: no such file')
        try:
            with Image.open(file) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
            raise ValueError(f'{option} {file!r}: no image that can be read ({error})') from error


def items_of_files(cfg: Config, files: Sequence[str]) -> list[dict[str, Any]]:
    """Image files as items of a data set: through the pipeline of the test set, without its labels."""
    from mmengine.dataset import Compose

    steps = [step for step in cfg.test_dataloader.dataset.pipeline if not step['type'].startswith('LoadAnn')]
    pipeline = Compose(steps)
    return [pipeline(dict(img_path=file, img_id=i)) for i, file in enumerate(files)]
