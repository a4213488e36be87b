"""Unpickling a checkpoint without running anything that the file chose.

What a pickle names (classes, functions) never becomes a class or a function here. It stays a name, and :data:`_CALLS`,
:data:`_NEW` and :data:`_BUILD` say what this module makes of it: tensors, NumPy arrays without objects, and plain data,
among it the few classes that mmengine's runner and published checkpoints save. Everything else is refused.

It does not depend on PyTorch's own allow-list, which differs between versions and belongs to the whole process.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor, nn

MAX_DEPTH = 100
"""How deep containers may be nested; what mmengine does with them is recursive."""
MAX_PARTS = 2 * 10**6
"""How many parts of containers there may be, one that stands in two places counted twice, as who walks it meets it."""
MAX_REPEATED = 2**30
"""Bytes that an expanded tensor may have beyond those that it is stored in: a copy of it has them all."""

_CLASS_FUNCTIONS = {
    f'{owner.__module__}.{owner.__name__}': {name: getattr(owner, name) for name in names}
    for owner, names in (
        (HistoryBuffer, ('min', 'max', 'current', 'mean')),
        (OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
    )
}
"""Functions that mmengine saves, as getattr(class, name)."""
_FUNCTIONS = [function for functions in _CLASS_FUNCTIONS.values() for function in functions.values()]
_DTYPE = re.compile(r'b1|[iuf][1248]|f16|c(?:8|16)|[SU][0-9]{1,6}')
_TENSORS = ('torch.Tensor', 'torch.nn.parameter.Parameter')
_SCALARS = (str, bytes, int, float, bool, type(None))


class Refused(pickle.UnpicklingError):
    """The file asks for something that a checkpoint does not need."""


class Name:
    """A class or function that a file names."""

    def __init__(self, full: str) -> None:
        self.full = full


class _Dtype:
    """The dtype of a NumPy array that is still to come."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, '='

    def make(self) -> np.dtype:
        return np.dtype(self.order + self.name)


def _require(holds: bool, what: str, *values: Any) -> None:
    if not holds:
        raise Refused(f'{what} got {", ".join(type(value).__name__ for value in values)} that it does not take')


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_history(value: Any) -> bool:
    arrays = [vars(value).get(key) for key in ('_log_history', '_count_history')]
    numbers = all(type(a) is np.ndarray and a.ndim == 1 and a.dtype.kind in 'biuf' for a in arrays)
    return numbers and len(arrays[0]) == len(arrays[1])


def _check_key(key: Any) -> Any:
    """Keys of dicts and items of sets: others, or numbers chosen to have one hash, may take for ever."""
    parts, limit = (key, 2**31) if type(key) is tuple else ((key,), 2**53)
    if len(parts) > 2 or not all(_is_key(part, limit) for part in parts):
        raise Refused(f'{type(key).__name__} as the key of a dict')
    return key


def _is_key(part: Any, limit: int) -> bool:
    if isinstance(part, (int, np.integer)):
        return -limit < int(part) < limit
    if isinstance(part, (float, np.floating)):
        return limit == 2**53 and part == part and not isinstance(part, np.longdouble)
    return isinstance(part, (str, bytes, np.bool_, type(None)))


# --- what names make: REDUCE ----------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, *hooks: Any) -> Tensor:
    where = 'a tensor'
    _require(isinstance(storage, torch.storage.TypedStorage), where, storage)
    _require(_is_count(offset) and isinstance(size, tuple) and isinstance(stride, tuple), where, offset, size, stride)
    _require(len(size) == len(stride) <= 64 and all(map(_is_count, (*size, *stride))), where, size, stride)
    _require(type(requires_grad) is bool and not any(hooks), where, requires_grad, *hooks)
    storage_bytes = storage._untyped_storage.nbytes()
    last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if all(size) else offset - 1
    if (last + 1) * torch._utils._element_size(storage.dtype) > storage_bytes:
        raise Refused(f'a tensor of {tuple(size)} reaches beyond its {storage_bytes} bytes')
    if math.prod(size) * torch._utils._element_size(storage.dtype) > storage_bytes + MAX_REPEATED:
        raise Refused(f'a tensor of {tuple(size)} that repeats its {storage_bytes} bytes')
    tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return tensor.requires_grad_() if requires_grad and tensor.is_floating_point() else tensor


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = (), attributes: Any = None) -> nn.Parameter:
    _require(type(data) is Tensor and type(requires_grad) is bool and not hooks, 'a parameter', data, requires_grad)
    return nn.Parameter(data, requires_grad and data.is_floating_point())


def _tensor_of_type(rebuild: Any, kind: Any, arguments: Any, attributes: Any) -> Tensor:
    """A tensor with Python attributes, as FSDP's have; they are left out, as those of parameters are."""
    known = isinstance(rebuild, Name) and _CALLS.get(rebuild.full) in (_tensor, _parameter)
    _require(known and isinstance(kind, Name) and kind.full in _TENSORS, 'a tensor', rebuild, kind)
    _require(type(arguments) is tuple, 'a tensor', arguments)
    tensor = _CALLS[rebuild.full](*arguments)
    if kind.full == 'torch.Tensor' or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), tensor.requires_grad)


def _dtype(name: Any, *flags: Any) -> _Dtype:
    _require(isinstance(name, str) and all(flag in (0, 1) for flag in flags), 'a dtype', name, *flags)
    name = {'?': 'b1'}.get(name, name)
    if not _DTYPE.fullmatch(name):
        raise Refused(f'arrays of dtype {name[:20]!r}')
    return _Dtype(name)


def _empty_array(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    asked = isinstance(kind, Name) and kind.full == 'numpy.ndarray' and shape == (0,) and dtype in (b'b', 'b')
    _require(asked, 'an array', kind, shape, dtype)
    return np.empty(0, np.int8)


def _numpy_scalar(dtype: Any, content: Any) -> np.generic:
    _require(isinstance(dtype, _Dtype) and isinstance(content, bytes), 'a NumPy scalar', dtype, content)
    made = dtype.make()
    _require(len(content) == made.itemsize > 0, 'a NumPy scalar', content)
    return np.frombuffer(content, made)[0]


def _ordered_dict(*pairs: Any) -> OrderedDict:
    _require(len(pairs) <= 1 and all(type(p) in (list, tuple) for p in pairs), 'an OrderedDict', *pairs)
    items = pairs[0] if pairs else ()
    _require(all(type(item) in (list, tuple) and len(item) == 2 for item in items), 'an OrderedDict', *pairs)
    return OrderedDict((_check_key(key), value) for key, value in items)


def _counter(counts: Any) -> Counter:
    _require(type(counts) is dict and all(type(n) in (int, float) for n in counts.values()), 'a Counter', counts)
    return Counter(counts)


def _set(*items: Any) -> set:
    _require(len(items) <= 1 and all(type(i) in (list, tuple) for i in items), 'a set', *items)
    return {_check_key(item) for group in items for item in group}


def _encode(text: Any, encoding: Any = 'latin1') -> bytes:
    _require(isinstance(text, str) and encoding in ('latin1', 'latin-1'), 'bytes', text, encoding)
    return text.encode('latin1')


def _no_bytes(*content: Any) -> bytes:
    _require(not content, 'bytes', *content)
    return b''


def _class_function(owner: Any, name: Any) -> Callable[..., Any]:
    """What ``getattr`` is in a checkpoint: it gives the functions that mmengine saves and no others."""
    _require(isinstance(owner, Name) and isinstance(name, str), 'getattr', owner, name)
    functions = _CLASS_FUNCTIONS.get(owner.full, {})
    if name not in functions:
        raise Refused(f'attribute {name[:60]!r} of {owner.full[:100]}')
    return functions[name]


def _size(sides: Any) -> torch.Size:
    _require(type(sides) in (list, tuple) and all(map(_is_count, sides)), 'a torch.Size', sides)
    return torch.Size(sides)


def _device(kind: Any, index: Any = None) -> torch.device:
    _require(isinstance(kind, str) and (index is None or _is_count(index)), 'a torch.device', kind, index)
    return torch.device(kind) if index is None else torch.device(kind, index)


_CALLS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _tensor_of_type,
    'torch.Size': _size,
    'torch.device': _device,
    'numpy.dtype': _dtype,
    **{f'numpy.{core}.multiarray._reconstruct': _empty_array for core in ('core', '_core')},  # _core since NumPy 2
    **{f'numpy.{core}.multiarray.scalar': _numpy_scalar for core in ('core', '_core')},
    'collections.OrderedDict': _ordered_dict,
    'collections.Counter': _counter,
    'builtins.set': _set,
    'builtins.bytes': _no_bytes,
    'builtins.getattr': _class_function,
    '_codecs.encode': _encode,
}


# --- what names make: NEWOBJ and BUILD --------------------------------------------------------------------------------


def _build_history(history: HistoryBuffer, state: Any) -> None:
    _require(type(state) is dict, 'a HistoryBuffer', state)
    methods = state.get('statistics_methods', {})
    _require(isinstance(methods, dict) and all(m in _FUNCTIONS for m in methods.values()), 'a HistoryBuffer', methods)
    known = {'_log_history', '_count_history', 'max_length', 'statistics_methods', '_statistics_methods'}
    _require(set(state) <= known, 'a HistoryBuffer', *state)
    _require(_is_history(argparse.Namespace(**state)) and _is_count(state.get('max_length')), 'a HistoryBuffer', state)
    # Its methods are those of this process: what a file holds must not change what all buffers compute.
    history.__setstate__({key: state[key] for key in ('max_length', '_log_history', '_count_history')})


def _build_namespace(namespace: argparse.Namespace, state: Any) -> None:
    _require(type(state) is dict and all(type(key) is str for key in state), 'a Namespace', state)
    vars(namespace).update(state)


def _build_ordered_dict(target: OrderedDict, state: Any) -> None:
    metadata = state.get('_metadata') if type(state) is dict and set(state) <= {'_metadata'} else None
    _require(metadata is None or type(metadata) in (dict, OrderedDict), 'an OrderedDict', state)
    _require(type(state) is dict and set(state) <= {'_metadata'}, 'an OrderedDict', state)
    if metadata is not None:
        vars(target)['_metadata'] = metadata


def _build_array(array: np.ndarray, state: Any) -> None:
    _require(array.shape == (0,) and type(state) is tuple and len(state) == 5, 'an array', array, state)
    version, shape, dtype, fortran, content = state
    _require(version == 1 and type(shape) is tuple and len(shape) <= 64, 'an array', version, shape)
    _require(all(map(_is_count, shape)), 'an array', *shape)
    _require(isinstance(dtype, _Dtype) and fortran in (0, 1) and type(content) is bytes, 'an array', dtype, content)
    made = dtype.make()
    _require(made.itemsize > 0 and math.prod(shape) * made.itemsize == len(content), 'an array', content)
    array.__setstate__((1, shape, made, bool(fortran), content))  # type: ignore[arg-type]


def _build_dtype(dtype: _Dtype, state: Any) -> None:
    _require(type(state) is tuple and len(state) == 8 and state[0] == 3, 'a dtype', state)
    _require(state[1] in ('<', '>', '|', '=') and not any(state[2:5]), 'a dtype', *state)
    dtype.order = state[1]


_NEW: dict[str, type] = {
    f'{HistoryBuffer.__module__}.HistoryBuffer': HistoryBuffer,
    'argparse.Namespace': argparse.Namespace,  # the command line of a training, as timm's and Meta's scripts save it
}
_BUILD: dict[type, Callable[[Any, Any], None]] = {
    HistoryBuffer: _build_history,
    argparse.Namespace: _build_namespace,
    OrderedDict: _build_ordered_dict,
    np.ndarray: _build_array,
    _Dtype: _build_dtype,
}
_ARGUMENTS = {'numpy.ndarray', *_TENSORS, *_CLASS_FUNCTIONS}
"""Names that are only arguments of those in _CALLS."""


# --- the machine ------------------------------------------------------------------------------------------------------

_Base: Any = pickle._Unpickler  # the one whose operations can be chosen

# What PyTorch writes (protocol 2) and what protocol 4 has in its place: no text, extensions or out-of-band data.
_OPERATIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
    *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.GLOBAL, pickle.STACK_GLOBAL),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
)


class Unpickler(_Base):
    """The part of a pickle machine that a checkpoint needs.

    Attributes:
        storage_sizes: bytes of each storage of the file by its key; None where they follow the pickle (PyTorch before
            1.6).
        total: bytes of the file.
        spent: entries that calls and states have taken; one that is named again and again would be copied each time.
        storages: keys of the storages that were asked for.
    """

    storage_sizes: Mapping[str, int] | None = None
    total = 0
    spent = 0
    storages: set[str] = set()  # noqa: RUF012  # each file has a class of its own

    dispatch = {operation[0]: _Base.dispatch[operation[0]] for operation in _OPERATIONS}  # noqa: RUF012

    def load(self) -> Any:
        try:
            result = super().load()
        except KeyError as error:
            raise Refused(f'operation or memo entry {error}') from error
        check_plain(result)
        return result

    def find_class(self, module: str, name: str) -> Any:
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if module == 'torch' and isinstance(vars(torch).get(name), torch.dtype):  # getattr would import parts of it
            return vars(torch)[name]
        if full not in _CALLS and full not in _NEW and full not in _ARGUMENTS:
            raise Refused(f'{full[:100]}, which is not on the list of what a checkpoint may name, as it could run code')
        return Name(full)

    def load_reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        call = _CALLS.get(called.full) if isinstance(called, Name) else None
        if call is None or type(arguments) is not tuple:
            raise Refused(f'a call of {called.full if isinstance(called, Name) else type(called).__name__}')
        self._spend(arguments)
        self.append(call(*arguments))

    def load_newobj(self) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        made = _NEW.get(named.full) if isinstance(named, Name) else None
        if made is None or arguments != ():
            raise Refused(f'an object of {named.full if isinstance(named, Name) else type(named).__name__}')
        self.append(object.__new__(made))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        build = _BUILD.get(type(target))
        if build is None:
            raise Refused(f'a state for {type(target).__name__}')
        self._spend(state)
        build(target, state)

    def _spend(self, taken: Any) -> None:
        parts = taken.values() if isinstance(taken, dict) else taken if isinstance(taken, tuple) else ()
        self.spent += sum(len(part) for part in (taken, *parts) if isinstance(part, (str, bytes, list, tuple, dict)))
        if self.spent > 3 * self.total + 2**20:
            raise Refused('the same parts again and again')

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        _require(type(self.stack[-1]) is list, 'a list', self.stack[-1])
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        _require(type(self.stack[-1]) in (dict, OrderedDict) and len(items) % 2 == 0, 'a dict', self.stack[-1])
        self.stack[-1].update(zip(map(_check_key, items[::2]), items[1::2]))

    def load_additems(self) -> None:
        items = self.pop_mark()
        _require(type(self.stack[-1]) is set, 'a set', self.stack[-1])
        self.stack[-1].update(map(_check_key, items))

    def load_binpersid(self) -> None:
        pid = self.stack.pop()
        zipped = self.storage_sizes is not None
        _require(type(pid) is tuple and len(pid) == (5 if zipped else 6) and pid[0] == 'storage', 'a storage', pid)
        dtype: Any = getattr(pid[1], 'dtype', None)
        key, location, count = pid[2:5]
        _require(isinstance(dtype, torch.dtype) and not isinstance(pid[1], Tensor), 'a storage', pid[1])
        _require(type(key) is str and type(location) is str and _is_count(count), 'a storage', key, location, count)
        there = self.total if self.storage_sizes is None else self.storage_sizes.get(key, -1)
        if count * torch._utils._element_size(dtype) > there:
            raise Refused(f'storage {key[:20]!r} of {count} numbers, of which the file has {max(there, 0)} bytes')
        if not zipped and pid[5] is not None:
            view = pid[5]
            _require(type(view) is tuple and len(view) == 3 and type(view[0]) is str, 'a view', view)
            _require(_is_count(view[1]) and _is_count(view[2]) and view[1] + view[2] <= count, 'a view', *view)
        self.storages.add(key)
        self.append(self.persistent_load(pid))


for _operation in ('reduce', 'newobj', 'build', 'append', 'appends', 'setitem', 'setitems', 'additems', 'binpersid'):
    Unpickler.dispatch[getattr(pickle, _operation.upper())[0]] = getattr(Unpickler, f'load_{_operation}')


def check_plain(value: Any) -> None:
    """See that a result holds nothing but plain data, tensors and arrays without objects.

    Raises:
        Refused: it holds something else, is nested deeper than :data:`MAX_DEPTH` or itself within itself, or has more
            than :data:`MAX_PARTS`.
    """
    parts = 0
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        kind = type(part)
        if kind in _LEAVES or isinstance(part, np.generic) or (kind is np.ndarray and not part.dtype.hasobject):
            continue
        # One without a state has no contents, and arrays can be given theirs after the state.
        if (kind is HistoryBuffer and _is_history(part)) or (callable(part) and part in _FUNCTIONS):
            continue
        if kind not in (dict, OrderedDict, Counter, list, tuple, set, argparse.Namespace):
            raise Refused(f'{part.full if isinstance(part, Name) else kind.__name__} as a value')
        inside: Sequence[Any] = list(part.values()) if isinstance(part, dict) else ()
        if kind in (list, tuple, set):
            inside = list(part)
        extra = list(vars(part).values()) if kind in (OrderedDict, argparse.Namespace) else []
        parts += len(inside) + len(extra)
        if depth == MAX_DEPTH or parts > MAX_PARTS:
            raise Refused(f'data nested deeper than {MAX_DEPTH}, or of more than {MAX_PARTS} parts')
        waiting += [(each, depth + 1) for each in (*inside, *extra)]


_LEAVES = {*_SCALARS, Tensor, nn.Parameter, torch.Size, torch.device, torch.dtype}
