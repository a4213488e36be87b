"""Are the files there that a config names, and what they should be? Checked before a model is built. And images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.checks import is_type

SMALL = 50_000_000
"""Bytes up to which a file of annotations is read beforehand; it takes about half a second."""


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """See that the files of the data sets are there, before a model is built.

    Paths that are not on this machine's disk (``s3://``, other backends) are left to mmengine.

    Args:
        cfg: the config. ``cfg.data_hint``, where there is one, is a sentence that says where the data come from.
        loaders: keys of the data loaders that the run will use.

    Raises:
        FileNotFoundError: names the config key, the path and the hint.
        ValueError: a folder of images has none, or a small file of annotations is not what its data set reads.
    """
    hint, read = cfg.get('data_hint'), set()
    for loader in loaders:
        for key, dataset in _datasets(cfg.get(loader) or {}, loader):
            for name, path in _dataset_paths(dataset):
                where = f'{key}.{name}'
                _check_there(where, path, hint)
                if name.startswith('data_prefix.') and 'img' in name:
                    _check_folder(where, path, dataset.get('img_suffix') or '')
                if name == 'ann_file' and _is_small_json(path):
                    _check_annotations(where, path, dataset)
                    read.add(os.path.abspath(path))
        if cfg.get(loader):
            evaluator = loader.replace('dataloader', 'evaluator')
            for path in _evaluator_paths(cfg.get(evaluator)):
                _check_there(f'{evaluator}.ann_file', path, hint)
                if _is_small_json(path) and os.path.abspath(path) not in read:
                    _read_json(f'{evaluator}.ann_file', path)


def _evaluator_paths(evaluators: Any) -> Iterator[str]:
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        path = evaluator.get('ann_file') if isinstance(evaluator, dict) else None
        if isinstance(path, str) and path and '://' not in path and not evaluator.get('backend_args'):
            yield path


def _check_there(key: str, path: str, hint: str | None) -> None:
    if not os.path.exists(path):
        raise _missing(key, path, hint)


def _is_small_json(path: str) -> bool:
    return path.endswith('.json') and os.path.isfile(path) and os.path.getsize(path) <= SMALL


def _check_folder(key: str, path: str, suffix: str) -> None:
    if not os.path.isdir(path):
        raise ValueError(f'{key}: {os.path.abspath(path)} is a file; a folder is expected')
    if not any(name.endswith(suffix) for _, _, names in os.walk(path, followlinks=True) for name in names):
        found = f'no image that ends in {suffix} (img_suffix)' if suffix else 'no image'
        raise ValueError(f'{key}: {os.path.abspath(path)} holds {found}')


def _read_json(key: str, path: str) -> Any:
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f'{key}: {os.path.abspath(path)} is no JSON, or cut off ({error})') from error


def _check_annotations(key: str, path: str, dataset: Any) -> None:
    """See that a file of annotations is COCO's, for a data set of that kind, and leaves an image to learn from.

    An endless sampler of mmengine would look for an image in an empty data set forever.
    """
    content = _read_json(key, path)
    if not is_type(dataset, 'CocoDataset'):
        return
    parts = ('images', 'annotations', 'categories')
    absent = [part for part in parts if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if absent:
        raise ValueError(f'{key}: {path} has no list of {", ".join(absent)}; a file in the format of COCO is expected')
    if not content['images']:
        raise ValueError(f'{key}: {path} has no image')
    classes = list((dataset.get('metainfo') or {}).get('classes') or ())
    names = [entry.get('name') for entry in content['categories'] if isinstance(entry, dict)]
    if classes and not {*classes} & {*names}:
        raise ValueError(
            f'{key}: {path} has the categories {", ".join(map(str, names))}; metainfo.classes are {", ".join(classes)}'
        )
    if not content['annotations'] and (dataset.get('filter_cfg') or {}).get('filter_empty_gt'):
        raise ValueError(f'{key}: {path} has no object, and filter_cfg.filter_empty_gt leaves out images without one')


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
