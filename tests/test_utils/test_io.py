"""Files are written whole or not at all."""

import pytest

from cropr_mm.utils.io import whole_file


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / 'out.json'
    with whole_file(path) as first:
        first.write_text('first')
        with whole_file(path) as second:
            assert second != first and second.suffix == first.suffix == '.json'
            second.write_text('second')
        assert path.read_text() == 'second'
    assert path.read_text() == 'first'
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / 'out.json'
    path.write_text('old')
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text('half')
        raise KeyError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
