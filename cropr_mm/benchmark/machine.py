"""What figures depend on beside the code: machine, threads, versions."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'numpy')


def describe_machine(device: str = 'cpu') -> dict[str, Any]:
    """Name of the processor or GPU (``machine``), ``cores``, ``threads`` of torch, ``python``, versions of packages.

    OneDL's packages go by their own names, such as ``onedl-mmengine``.
    """
    versions = {}
    for package in PACKAGES:
        for name in (package, f'onedl-{package}'):
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(name)
    name = torch.cuda.get_device_name(device) if device.startswith('cuda') else _processor()
    return dict(
        machine=name,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        **versions,
    )


def check_device(key: str, device: str) -> str:
    """The name of a device, where there is one of this name.

    Raises:
        ValueError: there is none; the message names the key.
    """
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA asserts that it has it
        reason = str(error).splitlines()[0]
        raise ValueError(f'{key}={device!r}: {reason}; cpu, or cuda with a GPU and its driver, is expected') from error
    return device


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
