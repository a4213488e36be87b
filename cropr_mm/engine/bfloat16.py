"""bfloat16 for the operators of mmcv, whose kernels take float32 and float16 alone."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import Function


def let_mmcv_take_bfloat16() -> int:
    """Let mmcv's operators (RoIAlign, deformable attention and convolution, NMS, …) compute bfloat16 in float32.

    Without it they raise (``"roi_align_forward" not implemented for 'BFloat16'``). Whatever they could compute before
    they compute as before. :class:`CroprHook` calls it before each run; a second call changes nothing.

    Returns:
        The number of operators, gradients included, that this call changed; 0 where ``mmcv.ops`` is not imported.
    """
    if 'mmcv.ops' not in sys.modules:
        return 0
    changed = 0
    for function in _functions(Function):
        for name in ('forward', 'backward'):
            method = vars(function).get(name)
            if isinstance(method, staticmethod) and not hasattr(method.__func__, 'in_float32'):
                setattr(function, name, staticmethod(_in_float32(method.__func__)))
                changed += 1
    return changed


def _functions(base: Any) -> Iterator[type]:
    for function in base.__subclasses__():
        if function.__module__.startswith('mmcv.ops.'):
            yield function
        yield from _functions(function)


def _in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def compute(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if all(t.dtype != torch.bfloat16 for t in tensors):
            return method(ctx, *args, **kwargs)
        dtype = next(t.dtype for t in tensors if t.is_floating_point())
        with torch.autocast(tensors[0].device.type, enabled=False):
            out = method(ctx, *map(_widen, args), **{key: _widen(value) for key, value in kwargs.items()})
        if isinstance(out, tuple):
            return tuple(_cast(value, dtype) for value in out)
        return _cast(out, dtype)

    vars(compute)['in_float32'] = True
    return compute


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
