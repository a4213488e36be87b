"""CIFAR-10 from archives of the binary version."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from cropr_mm.sample_data.photos import PHOTO_THINGS, read_photos

BATCHES = [*(f'data_batch_{number}.bin' for number in range(1, 6)), 'test_batch.bin']


@pytest.fixture
def batches():
    """Three records of random pixels in each batch, of the classes n, n + 1 and 9."""
    rng = np.random.default_rng(0)
    found = {}
    for number, name in enumerate(BATCHES):
        records = rng.integers(0, 256, (3, 3073), np.uint8)
        records[:, 0] = number, number + 1, 9
        found[name] = records
    return found


def pack(files, path):
    """As published, but with the batches the wrong way round and other files among them."""
    with tarfile.open(path, 'w:gz') as archive:
        for name, data in {**dict(reversed(list(files.items()))), 'readme.html': b'', 'x_test_batch.bin': b'1'}.items():
            content = data if isinstance(data, bytes) else data.tobytes()
            info = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def convert(run_tool, tmp_path):
    def run(source, out=tmp_path / 'out'):
        run_tool('dataset_converters/cifar10', source, out)
        return out

    return run


def test_images_are_those_of_the_batches_in_their_order(batches, convert, tmp_path, capsys):
    out = convert(pack(batches, tmp_path / 'source'))
    printed = capsys.readouterr()
    assert f'{out}: 15 train, 3 test images' in printed.out
    assert 'not the whole data set, which has 50000 train, 10000 test images' in printed.err
    assert len([file for file in out.rglob('*') if file.is_file()]) == 18
    for split, names in (('train', BATCHES[:5]), ('test', BATCHES[5:])):
        records = np.concatenate([batches[name] for name in names])
        for number, name in enumerate(PHOTO_THINGS):
            mine = records[records[:, 0] == number]
            files = sorted((out / split / name).iterdir())
            assert [file.name for file in files] == [f'{i:04d}.png' for i in range(len(mine))]
            for file, record in zip(files, mine):
                image = np.asarray(Image.open(file))
                for row, column, channel in ((0, 0, 0), (3, 30, 1), (31, 2, 2)):
                    assert image[row, column, channel] == record[1 + 1024 * channel + 32 * row + column]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'source']


def test_an_unpacked_folder_gives_the_same(batches, convert, tmp_path):
    for name, records in batches.items():
        for number in range(10):  # read_photos wants every class
            records = np.concatenate([records, records[:1]])
            records[-1, 0] = number
        batches[name] = records
        (tmp_path / name).write_bytes(records.tobytes())
    first, second = convert(pack(batches, tmp_path / 'source')), convert(tmp_path, tmp_path / 'second')
    for split in ('train', 'test'):
        for one, other in zip(read_photos(first, split), read_photos(second, split)):
            np.testing.assert_array_equal(one, other)


BROKEN = {
    'missing': (lambda b: b.pop('data_batch_3.bin'),
                r'source has no data_batch_3\.bin; expected are data_batch_1\.bin, .*, test_batch\.bin'),
    'size': (lambda b: b.update({'test_batch.bin': b['test_batch.bin'].tobytes()[:-1]}),
             r'test_batch\.bin in .*source has 9218 bytes; a multiple of 3073 is expected'),
    'empty': (lambda b: b.update({'test_batch.bin': b''}), r'has 0 bytes; a multiple of 3073 is expected'),
    'label': (lambda b: b['data_batch_2.bin'].__setitem__((1, 0), 10),
              r'data_batch_2\.bin in .*source holds the label 10; 0 to 9 is expected'),
    'twice': (lambda b: b.update({'old/data_batch_1.bin': b['data_batch_1.bin']}),
              r'source holds data_batch_1\.bin twice, again as cifar-10-batches-bin/'),
}  # fmt: skip


@pytest.mark.parametrize('case', BROKEN)
def test_a_source_with_faults_is_named_and_nothing_is_left(case, batches, convert, tmp_path):
    damage, message = BROKEN[case]
    damage(batches)
    with pytest.raises(SystemExit, match=f'^cifar10.py: error: .*{message}'):
        convert(pack(batches, tmp_path / 'source'))
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_what_is_no_source_and_an_output_that_is_there(batches, convert, tmp_path):
    with pytest.raises(SystemExit, match=r'none does not exist; cifar-10-binary\.tar\.gz or such a folder is expected'):
        convert(tmp_path / 'none')
    (tmp_path / 'text').write_text('no archive')
    with pytest.raises(SystemExit, match=r'text cannot be read: .*; a whole zip or tar archive, or a folder, is exp'):
        convert(tmp_path / 'text')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'note.txt').write_text('mine')
    with pytest.raises(SystemExit, match='mine exists; delete it or name another folder'):
        convert(pack(batches, tmp_path / 'source'), tmp_path / 'mine')
    assert (tmp_path / 'mine' / 'note.txt').read_text() == 'mine' and not (tmp_path / 'out').exists()
