"""No file that is brought to any door of the package runs, crashes or changes anything."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from cropr_mm.checkpoint.read import CheckpointError, load_file
from cropr_mm.checkpoint.unpickle import _CALLS, _CLASS_FUNCTIONS, _NEW, MAX_DEPTH
from cropr_mm.sample_data import write_sample_data

from . import hostile

DOORS = Path(__file__).with_name('doors.py')
ADDRESSES = ('init_cfg https', 'init_cfg s3', 'init_cfg openmmlab', 'init_cfg torchvision', 'init_cfg mmcls')
RUNNERS = ('load_from', 'resume', 'inference', 'retrofit')
TOOLS = (
    'deploy.py',
    'sweep_rates.py',
    'speedup.py',
    'report.py',
    'visualize_tokens.py',
    'analyze_routing.py',
    'test.py',
    'train.py --resume',
)
FEW = ('ndarray called', 'os.system', 'storage too long', 'cut at 0.9', 'legacy command', 'beyond.safetensors')
"""For doors that build a data set and a model before they read the file."""
LONG = ('pairs again and again', 'the same part everywhere')
"""Refused after seconds of work, by a limit of the reader: for the first door of each process."""


@pytest.fixture(scope='module')
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('proof') / 'proof'


@pytest.fixture(scope='module')
def corpus(tmp_path_factory: pytest.TempPathFactory, proof: Path) -> list[Path]:
    return hostile.write_corpus(tmp_path_factory.mktemp('hostile'), proof)


def knock(doors: tuple[str, ...], corpus: list[Path], proof: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What doors answer to the files of the corpus; in another process, so that a crash is one of the answers."""
    tasks: dict[str, list[str]] = {}
    for door in doors:
        few = door in ('retrofit', 'test.py', 'train.py --resume')
        fitting = [file for file in corpus if not few or any(part in file.name for part in FEW)]
        fitting = [file for file in fitting if door == doors[0] or not any(part in file.name for part in LONG)]
        tasks[door] = [str(file) for file in fitting if file.suffix == '.pth' or door != 'init_cfg s3']
    (folder / 'tasks.json').write_text(json.dumps(dict(proof=str(proof), doors=tasks)))
    command = [sys.executable, str(DOORS), str(folder / 'tasks.json')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    assert done.stdout.endswith('end\n'), f'ended with {done.returncode} at {lines[-1:]}:\n{done.stderr[-2000:]}'
    answers = {door: {line['file']: line for line in lines if line['door'] == door and 'ran' in line} for door in doors}
    assert {door: list(files) for door, files in answers.items()} == tasks
    return answers


def check(answers: dict[str, dict[str, Any]]) -> None:
    for door, files in answers.items():
        accepted = {Path(file).name: answer for file, answer in files.items() if not answer['refused']}
        assert not accepted, door
        assert not any(answer['ran'] for answer in files.values()), door
        if door not in ADDRESSES[2:]:
            assert all(Path(file).name in answer['message'] for file, answer in files.items()), door


def test_the_corpus_is_large_and_its_programs_do_what_they_say(corpus: list[Path], proof: Path) -> None:
    assert len(corpus) >= 60 and len({file.name for file in corpus}) == len(corpus)
    run = next(file for file in corpus if 'os.system' in file.name)
    with pytest.raises(Exception):  # noqa: B017  # the command has run when PyTorch misses what it would give
        torch.load(run, weights_only=False)['no such key']
    assert proof.exists()
    proof.unlink()


@pytest.mark.slow
def test_every_file_is_refused_by_init_cfg_and_by_mmengine(corpus: list[Path], proof: Path, tmp_path: Path) -> None:
    """All doors but the tools', in one process: an attack that crashes it is one of the answers."""
    check(knock(('init_cfg path', *ADDRESSES, *RUNNERS), corpus, proof, tmp_path))


@pytest.mark.slow
def test_every_file_is_refused_by_every_tool(corpus: list[Path], proof: Path, tmp_path: Path) -> None:
    """The tools as they are called, each with what it does before it reads the file."""
    pytest.importorskip('mmseg')
    write_sample_data(tmp_path / 'data' / 'sample', train=2, val=2, progress=False)
    check(knock(TOOLS, corpus, proof, tmp_path))


@pytest.mark.parametrize('title', hostile.healthy())
def test_a_healthy_file_of_the_same_making_loads(title: str, tmp_path: Path) -> None:
    file = hostile.write_archive(tmp_path / 'a.pth', hostile.checkpoint(hostile.healthy()[title]))
    loaded = load_file(str(file))
    assert loaded['state_dict']['weight'].tolist() == [0, 0, 0, 0]
    assert 'note' in loaded['message_hub']


def test_what_a_history_computes_stays_that_of_the_process(tmp_path: Path) -> None:
    other = hostile.mapping({'mean': hostile.attribute(hostile.HISTORY, 'max')})
    content = hostile.checkpoint(hostile.history(statistics_methods=other))
    load_file(str(hostile.write_archive(tmp_path / 'a.pth', content)))
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics('mean') == 2


def test_a_config_in_the_file_is_not_kept_for_mmengine_to_run(tmp_path: Path) -> None:
    torch.save(dict(meta=dict(config='exit()', epoch=1), state_dict={}), tmp_path / 'a.pth')  # as mmcv saved
    assert load_file(str(tmp_path / 'a.pth'))['meta'] == dict(epoch=1)


# --- random programs --------------------------------------------------------------------------------------------------


class Writer:
    """Random pickle programs over the allowed names, with what those expect more often than chance would have it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = sorted({*_CALLS, *_NEW, *_CLASS_FUNCTIONS, 'numpy.ndarray', 'torch.float32', 'torch.FloatStorage'})

    def program(self) -> bytes:
        content = self.value(4)
        if self.random.random() < 0.2:  # a byte goes wrong, one is lost, one comes twice
            at = self.random.randrange(len(content))
            content = content[:at] + bytes([self.random.randrange(256)] * self.random.randrange(3)) + content[at + 1 :]
        return hostile.program(content)

    def value(self, depth: int) -> bytes:
        kinds = [self.plain] if depth == 0 else [self.plain, self.known, self.called, self.made, self.container]
        return self.random.choice(kinds)(depth)

    def plain(self, depth: int) -> bytes:
        choices = [
            0,
            1,
            -1,
            2**40,
            0.5,
            None,
            True,
            '',
            'b',
            'f8',
            '|',
            '<',
            'mean',
            'cpu',
            (),
            (0,),
            (2,),
            (1, 2),
            [],
            {},
        ]
        kinds = [hostile.value(self.random.choice(choices)), hostile.name(self.random.choice(self.names))]
        return self.random.choice([*kinds, kinds[0], kinds[0], hostile.storage(count=self.random.choice([1, 4, 5]))])

    def known(self, depth: int) -> bytes:
        return self.random.choice(list(hostile.healthy().values()))

    def called(self, depth: int) -> bytes:
        arguments = [self.value(depth - 1) for _ in range(self.random.randrange(5))]
        kind = self.random.choice(self.names)
        make = self.random.choice([hostile.call, hostile.new])
        return make(kind, *arguments)

    def made(self, depth: int) -> bytes:
        state = self.random.choice([self.value(depth - 1), hostile.mapping({'_metadata': self.value(0)})])
        return hostile.build(self.value(depth - 1), state)

    def container(self, depth: int) -> bytes:
        items = [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        return self.random.choice(
            [
                hostile.group(*items),
                b'](' + b''.join(items) + b'e',
                hostile.mapping({str(i): item for i, item in enumerate(items)}),
                b'}(' + b''.join(items) + b'u',
                b'\x8f(' + b''.join(items) + b'\x90',
                self.value(depth - 1) + b'q\1' + b''.join(item + b'h\1\x86' for item in items),
            ]
        )


def plain_data(value: Any, depth: int = 0) -> bool:
    """The same promise as the package's own check makes, written again, another way."""
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject and value.dtype.fields is None and value.flags.owndata
    if isinstance(value, (dict, Counter, OrderedDict)):
        return all(plain_data(part, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set)):
        return depth <= MAX_DEPTH and all(plain_data(part, depth + 1) for part in value)
    if isinstance(value, HistoryBuffer):
        return all(plain_data(part) and part.dtype.kind in 'biuf' for part in value.data)
    if isinstance(value, torch.Tensor):
        return value.numel() == 0 or bool(torch.isfinite(value.float()).any() or True)  # reading it touches its memory
    if type(value).__name__ == 'Namespace':
        return all(plain_data(part) for part in vars(value).values())
    if callable(value):
        return any(value in functions.values() for functions in _CLASS_FUNCTIONS.values())
    plain = (str, bytes, int, float, bool, np.generic, torch.dtype, torch.device, torch.Size, type(None))
    return isinstance(value, plain)


def test_random_programs_give_plain_data_or_nothing(tmp_path: Path) -> None:
    programs = 2000
    accepted, file = [], tmp_path / 'a.pth'
    for seed in range(programs):
        hostile.write_archive(file, Writer(seed).program())
        try:
            accepted.append(load_file(str(file)))
        except CheckpointError as error:
            assert str(file) in str(error)
    assert all(plain_data(value) for value in accepted)
    assert programs // 10 < len(accepted) < programs - programs // 10  # both happen, often
