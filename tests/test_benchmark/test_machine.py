"""What is said of the machine."""

from importlib import metadata

import torch

from cropr_mm.benchmark import machine


def test_versions_are_those_installed_under_the_names_installed(monkeypatch):
    found = machine.describe_machine()
    assert torch.__version__.startswith(found['torch']) and found['machine'] and found['cores'] >= 1
    there = {'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'}

    def version(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(machine, 'version', version)
    found = machine.describe_machine()
    assert {name: found.get(name) for name in there} == there and 'mmcv' not in found and 'torch' not in found
