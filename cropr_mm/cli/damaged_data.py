"""Which file was it? mm's loaders do not always name the image or label map that they could not read."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.runner import Runner

FILE_KEYS = ('img_path', 'seg_map_path')


@contextmanager
def name_damaged_files(runner: Runner) -> Iterator[None]:
    """Where a run fails while it loads data, look for files that cannot be read and name them.

    Nothing is read ahead: the search begins after a failure, and only after one in the data pipeline.

    Raises:
        ValueError: in place of the loader's own exception, which stays attached; lists the files.
    """
    try:
        yield
    except Exception as error:
        if not _while_loading(error):
            raise
        damaged = [line for key in ('train', 'val', 'test') for line in damaged_files(_dataset(runner, f'_{key}_loop'))]
        if not damaged:
            raise
        raise ValueError('files that cannot be read (cut off or damaged): ' + '; '.join(damaged)) from error


def _while_loading(error: Exception) -> bool:
    # From a worker process only the text of the traceback arrives.
    in_worker = 'DataLoader worker process' in str(error)
    return in_worker or any('/transforms/' in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _dataset(runner: Runner, key: str) -> Any:
    loader = getattr(getattr(runner, key, None), 'dataloader', None)
    return getattr(loader, 'dataset', None)  # a loop that was never built is still its config


def damaged_files(dataset: Any, limit: int = 5) -> list[str]:
    """Images and label maps of a data set that cannot be decoded to their end.

    Args:
        dataset: a data set of mmengine, or a wrapper of several; None has no files.
        limit: stop after so many.

    Returns:
        ``'path (reason)'`` for each.
    """
    from PIL import Image

    found: list[str] = []
    for i in range(len(dataset) if hasattr(dataset, 'get_data_info') else 0):
        info = dataset.get_data_info(i)
        for path in (info[key] for key in FILE_KEYS if info.get(key)):
            try:
                with Image.open(path) as image:
                    image.load()
            except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG is SyntaxError
                found.append(f'{path} ({error})')
        if len(found) >= limit:
            break
    return found
