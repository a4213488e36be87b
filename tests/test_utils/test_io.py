"""Files and folders are written whole or not at all."""

import errno

import pytest

from cropr_mm.utils.io import check_place, whole_file, whole_folder


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


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / 'new' / 'out'
    with whole_folder(out) as partial:
        (partial / 'a').write_text('a')
        assert not out.exists() and partial.parent == out.parent
    assert [file.name for file in out.iterdir()] == ['a'] and list(out.parent.iterdir()) == [out]


def test_an_empty_folder_is_filled_after_an_error_left_it_empty(tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    with pytest.raises(KeyError), whole_folder(out) as partial:
        (partial / 'half').write_text('')
        raise KeyError
    assert list(tmp_path.iterdir()) == [out] and not list(out.iterdir())
    with whole_folder(out) as partial:
        (partial / 'a').write_text('a')
    assert (out / 'a').read_text() == 'a'


@pytest.mark.parametrize('taken', ['file', 'folder/file'])
def test_what_is_there_stays(tmp_path, taken):
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text('mine')
    out = tmp_path / taken.split('/')[0]
    with pytest.raises(FileExistsError, match=f'{out} exists; delete it or name another folder'), whole_folder(out):
        raise AssertionError('not reached')
    assert (tmp_path / taken).read_text() == 'mine' and list(tmp_path.iterdir()) == [out]


def test_a_full_disk_names_the_file(tmp_path):
    for writer in (whole_file, whole_folder):
        with pytest.raises(OSError, match='cannot be written') as error, writer(tmp_path / 'out'):
            raise OSError(errno.ENOSPC, 'No space left on device')
        assert error.value.filename == str(tmp_path / 'out') and not list(tmp_path.iterdir())
        with pytest.raises(OSError, match='unrelated') as error, writer(tmp_path / 'out'):
            raise OSError(errno.ENOENT, 'unrelated')
        assert error.value.filename is None


def test_a_place_to_write_to_is_looked_at_beforehand(tmp_path):
    (tmp_path / 'file').touch()
    for path, folder in (('new/out.json', False), ('file', False), ('new', True), ('', True)):
        check_place(tmp_path / path, folder)
    for path, folder, words in (
        ('', False, 'is a folder; a file'),
        ('file', True, 'is a file; a folder'),
        ('file/out.json', False, 'file is a file; a folder'),
        ('file/out', True, 'file is a file; a folder'),
    ):
        with pytest.raises(ValueError, match=words):
            check_place(tmp_path / path, folder)
    with pytest.raises(ValueError, match='nothing can be written to'):
        check_place('/proc/out.json')
    assert [path.name for path in tmp_path.iterdir()] == ['file']
