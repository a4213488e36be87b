"""The shell scripts hand on what they are given. Slurm itself is not here; a stand-in for srun prints its arguments."""

import os
import subprocess

import pytest

from .conftest import ROOT


@pytest.fixture
def srun(tmp_path):
    file = tmp_path / 'bin' / 'srun'
    file.parent.mkdir()
    file.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    file.chmod(0o755)

    def run(*arguments, **variables):
        path = f'{file.parent}:{os.environ["PATH"]}'
        command = [str(ROOT / 'tools' / 'slurm_train.sh'), *arguments]
        environment = {**os.environ, 'PATH': path, 'PYTHON': 'python', **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_slurm_starts_one_task_per_gpu(srun):
    printed = srun('gpu', 'job', 'my config.py', '--amp', GPUS='64', SRUN_ARGS='--qos high').stdout.splitlines()
    for expected in ('--gres=gpu:8', '--ntasks=64', '--ntasks-per-node=8', '--job-name=job', '--kill-on-bad-exit=1'):
        assert expected in printed
    assert printed[:2] == ['-p', 'gpu']
    assert printed[-9:] == ['--qos', 'high', 'python', '-u', str(ROOT / 'tools' / 'train.py'), 'my config.py',
                            '--launcher', 'slurm', '--amp']  # fmt: skip
    assert '--gres=gpu:2' in srun('gpu', 'job', 'config.py', GPUS='2').stdout


@pytest.mark.parametrize('script, arguments', [('dist_train', 1), ('dist_test', 2), ('slurm_train', 2)])
def test_too_few_arguments_are_answered_with_the_usage(script, arguments):
    run = subprocess.run([str(ROOT / 'tools' / f'{script}.sh'), *['x'] * arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert f'tools/{script}.sh' in run.stderr
