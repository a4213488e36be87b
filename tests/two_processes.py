"""Train several times in the same two processes (gloo, CPU), one training after another.

python two_processes.py TRAININGS.json   with the arguments of tools/train.py for each training

Both processes are copies of this one, which has imported the libraries: that takes longer than a training does.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / 'tools' / 'train.py'


def train_in_two_processes(trainings: list[list[str]], folder: Path) -> None:
    """Run the trainings from within ``folder``, where their configs may import modules from.

    Raises:
        AssertionError: one of them failed; the message ends with what it printed.
    """
    (folder / 'trainings.json').write_text(json.dumps([[str(part) for part in training] for training in trainings]))
    paths = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=paths)
    command = [sys.executable, '-W', 'ignore', __file__, 'trainings.json']
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]


def free_ports(count: int) -> list[str]:
    """Each training has its own: a process must not find the store of the training before."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [str(each.getsockname()[1]) for each in sockets]


def prepare(configs: set[str]) -> None:
    """Import what the configs need, and make mmengine read each metafile once and print no config neatly."""
    import mmengine.config.config
    import mmengine.config.utils

    from cropr_mm.utils.libraries import register_library

    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    mmengine.config.utils.load = lru_cache(maxsize=None)(mmengine.load)
    for config in configs:
        register_library(mmengine.config.Config.fromfile(config))


def forget(manager: Any) -> None:
    for kind in manager.__subclasses__():
        kind._instance_dict.clear()
        forget(kind)


def work(rank: int, trainings: list[list[str]], ports: list[str]) -> None:
    from mmengine.utils import ManagerMixin

    from cropr_mm.cli import run

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
    for arguments, port in zip(trainings, ports):
        forget(ManagerMixin)
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        sys.argv = [str(TRAIN), arguments[0], '--launcher', 'pytorch', *arguments[1:]]
        runpy.run_path(str(TRAIN), run_name='__main__')
        atexit.unregister(run._end_processes)
        run._end_processes()


def start(rank: int, trainings: list[list[str]], ports: list[str]) -> int:
    """Start a copy of this process; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work(rank, trainings, ports)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    trainings = json.loads(Path(sys.argv[1]).read_text())
    prepare({training[0] for training in trainings})
    ports = free_ports(len(trainings))
    running = {start(rank, trainings, ports) for rank in (0, 1)}
    while running:
        process, status = os.wait()
        running.discard(process)
        if status:  # the other one would wait for it
            for other in running:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


if __name__ == '__main__':
    main()
