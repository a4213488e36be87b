"""The command line around ``write_sample_data``."""

import pytest


def test_writes_and_then_leaves_alone(run_tool, tmp_path, capsys):
    for _ in range(2):
        run_tool('make_sample_data', tmp_path / 'out', '--train', 2, '--val', 1)
    assert '2 training and 1 validation images' in capsys.readouterr().out
    assert len(list((tmp_path / 'out' / 'images').rglob('*.jpg'))) == 3


def test_a_refusal_is_one_line(run_tool, tmp_path):
    (tmp_path / 'note.txt').write_text('mine')
    with pytest.raises(SystemExit) as refused:
        run_tool('make_sample_data', tmp_path)
    assert refused.value.code == (
        f'make_sample_data.py: error: {tmp_path} exists and is no sample data set (no readable sample_data.json in '
        'it); name another folder'
    )
