import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cropr_mm.sample_data import STUFF, draw_scene, write_sample_data
from cropr_mm.sample_data import sample as sample_module
from cropr_mm.sample_data.sample import MANIFEST, encode_rle


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_sample_data(tmp_path_factory.mktemp('data') / 'sample', train=6, val=4, progress=False)


def decode(rle):
    flat = np.repeat(np.arange(len(rle['counts'])) % 2, rle['counts']).astype(bool)
    return flat.reshape(rle['size'], order='F')


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


@pytest.mark.parametrize(
    'mask',
    [
        np.zeros((3, 4), bool),
        np.ones((3, 4), bool),
        np.eye(4, dtype=bool),
        np.eye(4, dtype=bool)[::-1],
        np.random.default_rng(0).random((7, 5)) < 0.5,
    ],
)
def test_run_lengths_restore_the_mask(mask):
    assert sum(encode_rle(mask)['counts']) == mask.size
    np.testing.assert_array_equal(decode(encode_rle(mask)), mask)


def test_run_lengths_are_those_of_pycocotools():
    coder = pytest.importorskip('pycocotools.mask')
    for mask in draw_scene(0, 3).masks:
        rle = coder.frPyObjects(encode_rle(mask), *mask.shape)
        np.testing.assert_array_equal(coder.decode(rle), mask)


def test_written_twice_the_bytes_are_the_same(data, tmp_path):
    again = write_sample_data(tmp_path / 'again', train=6, val=4, progress=False)
    assert files(again) == files(data)


def test_more_images_leave_the_first_as_they_are(data, tmp_path):
    more = files(write_sample_data(tmp_path / 'more', train=8, val=5, progress=False))
    assert all(more[name] == content for name, content in files(data).items() if name.endswith(('jpg', 'png')))


def test_training_and_validation_share_no_image(data):
    contents = [content for name, content in files(data).items() if name.endswith('jpg')]
    assert len(set(contents)) == len(contents) == 10


@pytest.mark.parametrize('split', ['training', 'validation'])
def test_label_maps_and_coco_masks_agree(data, split):
    coco = json.loads((data / 'annotations' / f'instances_{split}.json').read_text())
    assert len({annotation['id'] for annotation in coco['annotations']}) == len(coco['annotations'])
    for image in coco['images']:
        name = image['file_name'].split('.')[0]
        labels = np.asarray(Image.open(data / 'annotations' / split / f'{name}.png'))
        assert labels.shape == (image['height'], image['width']) and labels.min() >= 1
        objects = np.zeros_like(labels)
        for annotation in coco['annotations']:
            if annotation['image_id'] == image['id']:
                mask = decode(annotation['segmentation'])
                x, y, width, height = annotation['bbox']
                assert mask.sum() == annotation['area'] == mask[y : y + height, x : x + width].sum()
                assert mask[y].any() and mask[y + height - 1].any()
                assert mask[:, x].any() and mask[:, x + width - 1].any()
                assert not objects[mask].any(), 'masks overlap'
                objects[mask] = annotation['category_id'] + len(STUFF)
        np.testing.assert_array_equal(objects, np.where(labels > len(STUFF), labels, 0))


def test_a_complete_folder_is_left_alone(data, monkeypatch):
    monkeypatch.setattr(sample_module, 'draw_scene', None)
    assert write_sample_data(data, train=6, val=4) == data


def test_an_empty_folder_is_filled(tmp_path):
    assert (write_sample_data(tmp_path, train=1, val=1, progress=False) / MANIFEST).is_file()


def test_other_settings_in_a_complete_folder_are_named(data):
    with pytest.raises(ValueError, match=r'train=6 \(asked: 7\)'):
        write_sample_data(data, train=7, val=4)


@pytest.mark.parametrize('manifest', [None, '{', '[]', '{"format": 1}'])
def test_a_folder_that_is_no_sample_data_stays_untouched(tmp_path, manifest):
    (tmp_path / 'keep.txt').write_text('mine')
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match='no sample data set'):
        write_sample_data(tmp_path, train=1, val=1)
    assert files(tmp_path) == before


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / 'taken').write_text('')
    with pytest.raises(FileExistsError, match='taken'):
        write_sample_data(tmp_path / 'taken', train=1, val=1)


@pytest.mark.parametrize(
    'key, value',
    [('train', 0), ('val', -1), ('train', 100_001), ('val', 2.0), ('train', True), ('seed', -1), ('size', 16)],
)
def test_a_number_out_of_range_is_named(tmp_path, key, value):
    with pytest.raises(ValueError, match=f'{key}={value}'):
        write_sample_data(tmp_path / 'out', **{'train': 1, 'val': 1, key: value})
    assert not (tmp_path / 'out').exists()


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def draw(seed, index, *args):
        if index == 3:
            raise OSError('disk full')
        return draw_scene(seed, index, *args)

    monkeypatch.setattr(sample_module, 'draw_scene', draw)
    with pytest.raises(OSError, match='disk full'):
        write_sample_data(tmp_path / 'out', train=5, val=5, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != 'posix', reason='needs SIGKILL')
def test_a_killed_run_leaves_no_folder_that_looks_complete(tmp_path):
    out = tmp_path / 'out'
    command = f'from cropr_mm.sample_data import write_sample_data; write_sample_data({str(out)!r}, 20000, 5)'
    process = subprocess.Popen([sys.executable, '-c', command], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob('.out.*.partial/images/training/00003.jpg')):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    assert (write_sample_data(out, train=1, val=1, progress=False) / MANIFEST).is_file()


def test_a_second_writer_that_comes_late_accepts_the_first(tmp_path, monkeypatch):
    out, write_split = tmp_path / 'out', sample_module._write_split

    def overtaken(root, split, *args):
        if split == 'validation' and not out.exists():
            monkeypatch.setattr(sample_module, '_write_split', write_split)
            write_sample_data(tmp_path / 'first', train=2, val=1, progress=False).rename(out)
        write_split(root, split, *args)

    monkeypatch.setattr(sample_module, '_write_split', overtaken)
    assert write_sample_data(out, train=2, val=1, progress=False) == out
    assert [path.name for path in tmp_path.iterdir()] == ['out']
