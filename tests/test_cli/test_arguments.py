"""Errors of the input end a program in one line."""

import errno
import os

import pytest
from mmengine.registry import HOOKS

import cropr_mm  # noqa: F401 registers CroprHook
from cropr_mm.cli.arguments import plain_errors


def test_plain_errors_end_the_program_in_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/train.py'])
    with pytest.raises(SystemExit, match=r'^train.py: error: a.py is not there$'), plain_errors():
        raise FileNotFoundError('a.py is not there')
    with pytest.raises(SystemExit, match=r'^train.py: error: out.json: No space left on device$'), plain_errors(()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'out.json')
    with pytest.raises(ZeroDivisionError), plain_errors():  # our own mistakes keep their traceback
        1 / 0  # noqa: B018


def test_what_a_library_says_on_purpose_is_one_line_and_what_breaks_in_it_is_not(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/train.py'])
    wanted = r"^train.py: error: type='CroprHook' takes no 'rampe'; did you mean 'ramp'.*\?$"
    with pytest.raises(SystemExit, match=wanted), plain_errors(()):
        HOOKS.build(dict(type='CroprHook', rampe=1))
    with pytest.raises(SystemExit, match=r"'CroprHok' is not .*; did you mean 'CroprHook'.*\?$"), plain_errors(()):
        HOOKS.build(dict(type='CroprHok'))
    with pytest.raises(TypeError), plain_errors(()):
        HOOKS.build(dict(type='CroprHook'), 1, 2, 3, 4)
    with pytest.raises(ValueError, match='mine'), plain_errors(()):  # raised by other programs
        raise ValueError('mine')


def test_the_traceback_is_to_be_had(monkeypatch):
    monkeypatch.setenv('CROPR_MM_TRACEBACK', '1')
    with pytest.raises(FileNotFoundError), plain_errors():
        raise FileNotFoundError('a.py is not there')


def test_an_interrupted_program_says_so(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['tools/train.py'])
    with pytest.raises(SystemExit) as ended, plain_errors(()):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == 'train.py: interrupted\n'
