"""Checkpoints of short trainings, and the sample data and tools of the tests that run them."""

import pytest

from ..test_tools.conftest import CONFIGS, data_folder, few_iterations, run_tool, sample_data

__all__ = ['data_folder', 'run_tool', 'sample_data']
CASES = {'mmseg': CONFIGS / 'fcn_cropr-vit_sample.py', 'mmdet': CONFIGS / 'mask-rcnn_cropr-vit_sample.py'}


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    return {}, tmp_path_factory


@pytest.fixture
def trained(made, data_folder, run_tool):
    """``trained(library)`` → a config, a checkpoint of two iterations, and what tools/deploy.py makes of it."""

    def train(library):
        pytest.importorskip(library)
        done, factory = made
        if library not in done:
            folder = factory.mktemp(library)
            run_tool('train', CASES[library], '--no-validate', '--work-dir', folder, *few_iterations(2))
            run_tool('deploy', CASES[library], folder / 'iter_2.pth', folder / 'deployed.pth')
            done[library] = CASES[library], folder / 'iter_2.pth', folder / 'deployed.pth'
        return done[library]

    return train
