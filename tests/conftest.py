"""What all tests share: a fixed seed, and properties that hold or fail the same way on every run."""

import os
import random
from functools import lru_cache

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: models are tiny, and tests run in several processes

import mmengine
import numpy as np
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
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def scope():
    """The library whose names come first is that of the test, not of one that ran before."""
    DefaultScope._instance_dict.clear()  # of a fixture, too, that several tests share
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session', autouse=True)
def quick_configs():
    """Two costs of mmengine's configs that are most of a short run: neither changes what a config says.

    A runner lets yapf format the text of its config three times. For every base in another library mmengine parses
    all metafiles of that library, about a hundred; here each is parsed once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True), raising=False)
        patch.setattr('mmengine.config.utils.load', lru_cache(maxsize=None)(mmengine.fileio.load), raising=False)
        yield
