"""What all tests share: a fixed seed, and properties that hold or fail the same way on every run."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.registry import DefaultScope

settings.register_profile(
    'repeatable', deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile('repeatable')


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def scope():
    """The library whose names come first is that of the test, not of one that ran before."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
