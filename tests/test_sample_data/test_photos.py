"""Photographs are read in one order, and in parts that have none in common."""

import numpy as np
import pytest
from PIL import Image

from cropr_mm.sample_data.photos import PHOTO_THINGS, read_photos

from .photo_folders import PER_CLASS, write_cifar10


@pytest.fixture(scope='module')
def cifar10(tmp_path_factory):
    return write_cifar10(tmp_path_factory.mktemp('data') / 'cifar10')


def values(photos):
    """The one value of each image."""
    images = photos[0]
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_class_by_class_in_the_order_of_the_names(cifar10):
    images, classes = read_photos(cifar10, 'train')
    assert images.shape == (10 * PER_CLASS, 32, 32, 3) and images.dtype == np.uint8 and classes.dtype == np.int64
    assert classes.tolist() == [number for number in range(10) for _ in range(PER_CLASS)]
    assert values((images, classes)) == [20 * number + i for number in range(10) for i in range(PER_CLASS)]
    assert values(read_photos(cifar10, 'test')) == [value + 6 for value in values((images, classes))]


@pytest.mark.parametrize('share', [0.2, 0.5, 0.8])
def test_parts_share_no_photograph_and_make_the_whole(cifar10, share):
    first, last = read_photos(cifar10, 'train', last=share), read_photos(cifar10, 'train', first=share)
    assert not {*values(first)} & {*values(last)}
    assert sorted(values(first) + values(last)) == values(read_photos(cifar10, 'train'))
    assert set(first[1]) == set(last[1]) == set(range(10)), 'a part of each class'


def test_what_is_missing_or_of_another_size_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'train/airplane: no \.jpg or \.png; CIFAR-10 as tools/.*cifar10\.py'):
        read_photos(tmp_path, 'train')
    root = write_cifar10(tmp_path / 'cifar10', 1)
    for file in (root / 'test' / PHOTO_THINGS[-1]).iterdir():
        file.rename(file.with_suffix('.txt'))
    with pytest.raises(FileNotFoundError, match=r'test/truck: no \.jpg'):
        read_photos(root, 'test')
    Image.new('RGB', (32, 30)).save(root / 'train' / 'cat' / '0001.png')
    with pytest.raises(ValueError, match=r'cat/0001\.png: 32 × 30 pixels; 32 × 32 are expected'):
        read_photos(root, 'train')


def test_grey_images_become_rgb(tmp_path):
    root = write_cifar10(tmp_path / 'cifar10', 1)
    Image.new('L', (32, 32), 99).save(root / 'train' / 'airplane' / '0000.png')
    assert (read_photos(root, 'train')[0][0] == 99).all()
