"""What an exception says to who runs a tool: one line, with the key or file, the value and what is valid.

An exception is about the input where this package, OpenMMLab's libraries or PyTorch raise it on purpose: by a ``raise``
or an ``assert`` with a message, or as a registry calls a class with the arguments of a config. Whatever else goes wrong
is a mistake of a program, and keeps its traceback.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.error import URLError

import mmengine.registry
from mmengine.registry import Registry

from ..utils.checks import nearest

_LIBRARIES = ('cropr_mm', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain', 'torch')
_MISSING = re.compile(r'(\S+) is not in the (\S+)::(.+?) registry')
_ARGUMENTS = re.compile(r"\(\) (?:got an unexpected keyword argument '(\w+)'|missing \d+ required .*: (.+))")
_BUILD = 'mmengine/registry/build_functions.py'
# What is said far from a mistake in the input, by exceptions of which kinds, and what is meant.
_MEANINGS = {
    r'Target (-?\d+) is out of bounds': (
        'the labels of the batch hold class {}, which num_classes of a head does not reach; the number of classes of '
        'the data set is expected'
    ),
    r'only batches of spatial targets supported': (
        'a label map of the batch has several channels, as a colour image has; one channel of class numbers is expected'
    ),
    r"^'inputs'$": (
        "dataset.pipeline gives no 'inputs'; LoadImageFromFile at its beginning and Pack…Inputs at its end are expected"
    ),
    r"object has no attribute '_(gt_\w+)'": (
        'the data samples have no {}; LoadAnnotations is missing in dataset.pipeline'
    ),
    r'out of memory': 'the device is out of memory; lower batch_size of the data loader, or the size of the images',
}
_MEANT = (IndexError, RuntimeError, KeyError, AttributeError)
_WORKER = re.compile(r'Caught (\w+) in DataLoader worker process')


def is_about_input(error: BaseException) -> bool:
    """Whether a program raised this to say what is wrong with what it was given."""
    if isinstance(error, OSError):
        return True
    if _WORKER.match(str(error)):
        return _worker_meant_it(str(error))
    if _meaning(error):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not str(error).strip():
        return False
    return _wrong_arguments_of(error) is not None or _on_purpose(frames[-1].filename, frames[-1].line or '')


def _on_purpose(file: str, line: str) -> bool:
    return line.lstrip().startswith(('raise ', 'assert ')) and any(f'/{name}/' in file for name in _LIBRARIES)


def _worker_meant_it(text: str) -> bool:
    """The same of an exception that came from a worker of a data loader, as text with its traceback."""
    found = re.findall(r'File "(.+)", line \d+, in .+\n +(.+)', text)
    return bool(found) and _on_purpose(*found[-1])


def _wrong_arguments_of(error: BaseException) -> Any:
    """The class that a registry called with arguments which it does not take, if that is what happened."""
    if not isinstance(error, TypeError) or not _ARGUMENTS.search(str(error)):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built = [frame for frame in frames if frame.f_code.co_filename.endswith(_BUILD)]
    return built[-1].f_locals.get('obj_cls') if built else None


def one_line(error: BaseException) -> str:
    """The message of an exception, with names that are near the wrong one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, URLError):
        text = str(error.reason)
    if _WORKER.match(text):
        text = _last_message(text)
    if _meaning(error):
        return _meaning(error)
    missing, kind = _MISSING.search(text), _wrong_arguments_of(error)
    if missing:
        name, scope, registry = missing.groups()
        return f"type={name!r} is not in {scope}'s registry {registry!r}" + nearest(name, _names_in(registry))
    wrong = _ARGUMENTS.search(text)
    if wrong and inspect.isclass(kind):
        unknown, absent = wrong.groups()
        what = f'type={kind.__name__!r}'
        return (
            f'{what} needs {absent}' if absent else f'{what} takes no {unknown!r}' + nearest(unknown, _arguments(kind))
        )
    return ' '.join(text.split())


def _meaning(error: BaseException) -> str:
    found = ((re.search(pattern, str(error)), meaning) for pattern, meaning in _MEANINGS.items())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KeyError) and not (frames and frames[-1].filename.endswith('data_preprocessor.py')):
        return ''
    meanings = (meaning.format(*match.groups()) for match, meaning in found if match)
    return next(meanings, '') if isinstance(error, _MEANT) else ''


def _last_message(text: str) -> str:
    """The message at the end of a traceback in a text."""
    end = re.split(r'\n(?=\S)', text.rstrip())[-1]
    return end.partition(': ')[2] or end


def _arguments(kind: type) -> list[str]:
    """Names of the arguments of a class, and of those that it inherits from as far as it hands others on to them."""
    names: list[str] = []
    for cls in kind.__mro__:
        if '__init__' in vars(cls) and cls is not object:
            parameters = list(inspect.signature(vars(cls)['__init__']).parameters.values())[1:]
            names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names


def _names_in(registry: str) -> Iterator[str]:
    """What is registered under the name of a registry, in all libraries that are loaded."""
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry) and root.name == registry:
            for one in (root, *root.children.values()):
                yield from one.module_dict
