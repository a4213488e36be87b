"""Every tool says what it does; shell scripts pass on their arguments (a stand-in for srun prints them)."""

import json
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


@pytest.mark.parametrize('tool', sorted(file.stem for file in (ROOT / 'tools').glob('*.py')))
def test_every_tool_says_what_it_does(tool, run_tool, capsys):
    with pytest.raises(SystemExit) as end:
        run_tool(tool, '--help')
    assert end.value.code == 0 and f'usage: {tool}.py' in capsys.readouterr().out


def test_curves_of_cost_are_drawn_and_written(run_tool, tmp_path, capsys):
    run_tool('cost_curves', '--arch', 'vit-tiny', '--sizes', 64, 96, '--batches', 1, '--rates', 0.05, '--rounds', 1,
             '--json', tmp_path / 'curves.json', '--plot', tmp_path / 'curves.png')  # fmt: skip
    curves = json.loads((tmp_path / 'curves.json').read_text())
    assert [point['size'] for point in curves['size']] == [64, 96] and curves['threads'] >= 1
    assert curves['size'][0] == curves['batch'][0] == curves['rate'][0]
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    files = tmp_path / 'curves.json', tmp_path / 'curves.png'
    assert capsys.readouterr().out.splitlines()[-2:] == [f'written: {file}' for file in files]
