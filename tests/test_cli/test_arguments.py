"""Errors of the input end a program in one line; what it wrote is one line each."""

from pathlib import Path

import pytest

from cropr_mm.cli.arguments import plain_errors, print_written


def test_plain_errors_end_the_program_in_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/train.py'])
    with pytest.raises(SystemExit, match=r'^train.py: error: a.py is not there$'), plain_errors():
        raise FileNotFoundError('a.py is not there')
    with pytest.raises(ZeroDivisionError), plain_errors():  # our own mistakes keep their traceback
        1 / 0  # noqa: B018


def test_what_was_written_is_a_line_each(capsys):
    print_written('a.json', None, Path('b') / 'c.png')
    assert capsys.readouterr().out == 'written: a.json\nwritten: b/c.png\n'
