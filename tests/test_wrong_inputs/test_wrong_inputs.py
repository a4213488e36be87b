"""Each wrong input of the table ends in one line that says what is wrong, and leaves nothing half-done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.runner import runner as mm_runner

from ..test_tools.conftest import ROOT
from . import table
from .material import furnish
from .workshop import Ended, Workshop, tool_file

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
BYTES_ON_A_FULL_DISK = 100_000


@pytest.fixture(scope='session')
def workshop(tmp_path_factory, quick_configs):
    from cropr_mm.sample_data import write_sample_data

    root = tmp_path_factory.mktemp('workshop')
    furnish(root, write_sample_data(tmp_path_factory.mktemp('data') / 'sample', train=24, val=6, progress=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mm_runner, 'collect_env', dict)  # asks compilers for their versions, each time
        yield Workshop(root)


def by_name(rows: list[table.Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('row', [pytest.param(row, id=row.name) for row in rows])


def shown(row: table.Row, ended: Ended) -> str:
    return f'{row.config}\n$ {row.command}\n{ended.output[-3000:]}\n{ended.trace}'


@by_name(table.ROWS)
def test_one_line_says_what_is_wrong(workshop, row):
    ended = workshop.row(row)
    assert not ended.problems(row.parts), shown(row, ended)


@by_name(table.FULL_DISK)
def test_a_full_disk(workshop, row):
    ended = workshop.run_on_full_disk(row, BYTES_ON_A_FULL_DISK)
    assert not ended.problems(row.parts), shown(row, ended)


@by_name(table.FINE)
def test_what_looks_odd_and_is_right(workshop, row):
    ended = workshop.row(row)
    assert ended.code == 0, shown(row, ended)


def test_the_table_is_as_long_as_it_claims():
    commands = {(row.config, row.command) for row in table.ROWS}
    assert len(commands) == len(table.ROWS) >= 200
    tools = {row.command.split()[0] for row in table.ROWS} - {'python'}
    folder = tool_file('train').parent
    there = {file.stem for file in [*folder.glob('*.py'), *folder.glob('dataset_converters/*.py')]}
    assert tools == there, 'a tool without a row'


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_say_how_they_are_called(script):
    run = subprocess.run(['bash', str(tool_file('train').with_name(script))], capture_output=True, text=True)
    assert run.returncode == 2
    assert f'tools/{script}' in run.stderr


def test_an_interrupted_write_leaves_nothing(tmp_path):
    """A process that gets Ctrl-C while it writes a data set."""
    out, env = tmp_path / 'sample', {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, str(tool_file('make_sample_data')), str(out)]
    run = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    while run.poll() is None and not any(tmp_path.rglob('*.jpg')):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors.strip().splitlines()[-1] == 'make_sample_data.py: interrupted'
    assert 'Traceback' not in errors
    assert not list(Path(tmp_path).iterdir())
