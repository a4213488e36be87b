"""A small sample data set, and a way to run our tools inside the test process."""

import runpy
import sys
from pathlib import Path

import pytest
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'sample'


@pytest.fixture(scope='session')
def sample_data(tmp_path_factory):
    from cropr_mm.sample_data import write_sample_data

    return write_sample_data(tmp_path_factory.mktemp('data') / 'sample', train=24, val=6, progress=False)


@pytest.fixture
def data_folder(sample_data, tmp_path, monkeypatch):
    """An empty current directory in which data/sample is the sample data."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'sample').symlink_to(sample_data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forget(manager):
    """Drop what mmengine keeps for the length of a process: a new process would not have it."""
    for kind in manager.__subclasses__():
        kind._instance_dict.clear()
        forget(kind)


@pytest.fixture
def run_tool(monkeypatch):
    """``run_tool('train', ...)`` is ``python tools/train.py ...`` without starting an interpreter."""

    def run(tool, *arguments):
        forget(ManagerMixin)
        file = ROOT / 'tools' / f'{tool}.py'
        monkeypatch.setattr(sys, 'argv', [str(file), *map(str, arguments)])
        return runpy.run_path(str(file), run_name='__main__')

    return run


def few_iterations(count, batch=2, extra=()):
    """Options that turn a sample config into a run of seconds that starts from random weights."""
    return [
        '--cfg-options',
        'model.backbone.init_cfg=None',
        f'train_cfg.max_iters={count}',
        f'train_cfg.val_interval={count}',
        'default_hooks.logger.interval=1',
        *(
            f'{loader}_dataloader.{key}'
            for loader in ('train', 'val', 'test')
            for key in ('num_workers=0', 'persistent_workers=False', f'batch_size={batch}')
        ),
        *extra,
    ]
