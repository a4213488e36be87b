"""Errors of the input end a program in one line."""

import pytest

from cropr_mm.cli.arguments import plain_errors


def test_plain_errors_end_the_program_in_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/train.py'])
    with pytest.raises(SystemExit, match=r'^train.py: error: a.py is not there$'), plain_errors():
        raise FileNotFoundError('a.py is not there')
    with pytest.raises(ZeroDivisionError), plain_errors():  # our own mistakes keep their traceback
        1 / 0  # noqa: B018
