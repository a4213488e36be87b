"""Scenes of real pixels: what is drawn, and what mmsegmentation and mmdetection read of it."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from cropr_mm.sample_data import write_sample_data
from cropr_mm.sample_data.photo_scenes import (
    PHOTO_CLASSES,
    PHOTO_PALETTE,
    PHOTO_STUFF,
    PhotoScenes,
    write_photo_scenes,
)
from cropr_mm.sample_data.photos import PHOTO_THINGS
from cropr_mm.utils.libraries import register_library

from ..test_tools.conftest import ROOT
from .photo_folders import write_camvid, write_cifar10

CONFIGS = ROOT / 'configs' / 'photos'


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sources')
    return write_cifar10(folder / 'cifar10'), write_camvid(folder / 'camvid')


@pytest.fixture(scope='module')
def scenes(sources):
    return {split: PhotoScenes(*sources, split) for split in ('training', 'validation')}


def same(one, other):
    return (one.image == other.image).all() and (one.labels == other.labels).all()


def test_an_index_is_one_scene_and_each_split_has_its_own(scenes, sources):
    first = [scenes['training'](index) for index in range(4)]
    scenes['training'](9)
    again = PhotoScenes(*sources, 'training')
    assert all(same(scene, again(index)) for index, scene in enumerate(first))
    assert not same(first[0], first[1]) and not same(first[0], PhotoScenes(*sources, 'training', seed=1)(0))
    assert not same(first[0], scenes['validation'](0))


def test_validation_pastes_other_photographs_on_another_place(scenes):
    train, val = scenes['training'], scenes['validation']
    assert not {*train.photos[:, 0, 0, 0]} & {*val.photos[:, 0, 0, 0]}
    assert len(train.photos) == 10 and len(val.photos) == 50, 'the last of five; all'
    assert not any((a == b).all() for a, _ in train.places.images for b, _ in val.places.images)


def test_labels_are_of_the_stuff_around_and_of_the_masks(scenes):
    seen, counts = set(), set()
    for index in range(40):
        scene = scenes['training'](index)
        assert scene.image.shape == (64, 64, 3) and scene.labels.shape == (64, 64)
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert ((scene.labels < len(PHOTO_CLASSES)) | (scene.labels == 255)).all()
        assert len(scene.masks) == len(scene.categories) and all(mask.any() for mask in scene.masks)
        assert (scene.masks.sum(0) <= 1).all(), 'masks overlap'
        objects = np.zeros((64, 64), int)
        for mask, category in zip(scene.masks, scene.categories):
            objects[mask] = len(PHOTO_STUFF) + category
        covered = (scene.labels >= len(PHOTO_STUFF)) & (scene.labels != 255)
        np.testing.assert_array_equal(np.where(covered, scene.labels, 0), objects)
        seen |= {*scene.labels.ravel().tolist()}
        counts.add(len(scene.masks))
    assert {0, 1, 2, 3, 255} <= seen, 'all of the stuff, and void'
    assert counts == {1, 2}


def test_the_pixels_of_a_mask_are_those_of_its_photograph(sources, monkeypatch):
    """Photographs of one colour, without shades, on a background of noise."""
    scenes = PhotoScenes(*sources, 'training')
    monkeypatch.setattr('cropr_mm.sample_data.photo_scenes.smooth_noise', lambda rng, size, _: np.zeros((size, size)))
    for index in range(10):
        scene = scenes(index)
        for mask in scene.masks:
            pixels = scene.image[mask].astype(int)
            assert np.median(np.abs(pixels - np.median(pixels, axis=0))) <= 1, 'one colour in most of the mask'


def test_scenes_are_as_large_as_the_road_scenes_allow(sources):
    assert PhotoScenes(*sources, 'training', size=66)(0).image.shape == (66, 66, 3)
    with pytest.raises(ValueError, match=r'size=68; at most 66 is expected: .* image in .*camvid has 120 pixels'):
        PhotoScenes(*sources, 'training', size=68)


def test_palette_and_classes_match():
    assert len(PHOTO_PALETTE) == len(set(PHOTO_PALETTE)) == len(PHOTO_CLASSES) == 14


def test_without_road_scenes_the_folder_is_named(sources, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'camvid/images/train: no images; CamVid as tools/.*camvid\.py'):
        PhotoScenes(sources[0], tmp_path / 'camvid', 'training')


@pytest.fixture(scope='module')
def written(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp('written')
    write_photo_scenes(folder / 'data' / 'photos', *sources, train=4, val=3, progress=False)
    return folder


def dataset_of(folder, name, loader, monkeypatch):
    pytest.importorskip('mmseg' if name.startswith('fcn') else 'mmdet')
    monkeypatch.chdir(folder)
    cfg = Config.fromfile(str(CONFIGS / f'{name}_dense-vit_photos.py'))
    register_library(cfg)
    return DATASETS.build(cfg[loader].dataset)


@pytest.mark.parametrize('split', ['training', 'validation'])
def test_label_maps_are_as_mmseg_reads_them(split, written, scenes, monkeypatch):
    dataset = dataset_of(written, 'fcn', 'val_dataloader', monkeypatch)
    assert tuple(dataset.metainfo['classes']) == PHOTO_CLASSES and len(dataset) == 3
    label = np.asarray(Image.open(written / 'data' / 'photos' / 'annotations' / split / '00001.png'))
    assert ((label == 0) == (scenes[split](1).labels == 255)).all() and label.max() <= len(PHOTO_CLASSES)
    if split == 'validation':
        for index in range(3):
            data = dataset[index]['data_samples'].gt_sem_seg.data[0].numpy()
            np.testing.assert_array_equal(data, scenes[split](index).labels)


def test_masks_are_as_mmdet_reads_them(written, scenes, monkeypatch):
    dataset = dataset_of(written, 'mask-rcnn', 'val_dataloader', monkeypatch)
    assert tuple(dataset.metainfo['classes']) == PHOTO_THINGS and len(dataset) == 3
    for index in range(3):
        scene, found = scenes['validation'](index), dataset[index]['data_samples'].gt_instances
        assert found.labels.tolist() == list(scene.categories)
        masks = found.masks.masks.astype(bool)
        np.testing.assert_array_equal(masks, scene.masks)


def test_they_are_left_alone_and_told_from_other_data(written, sources, tmp_path):
    out = written / 'data' / 'photos'
    before = (out / 'sample_data.json').stat().st_mtime_ns
    assert write_photo_scenes(out, 'none', 'none', train=4, val=3) == out, 'nothing is read'
    assert (out / 'sample_data.json').stat().st_mtime_ns == before
    assert json.loads((out / 'sample_data.json').read_text())['size'] == 64
    with pytest.raises(ValueError, match=r'train=4 \(asked: 5\)'):
        write_photo_scenes(out, *sources, train=5, val=3)
    drawn = write_sample_data(tmp_path / 'sample', train=1, val=1, size=64, progress=False)
    with pytest.raises(FileExistsError, match=r'sample exists and is no sample data set'):
        write_photo_scenes(drawn, *sources, train=1, val=1)
    with pytest.raises(FileExistsError, match='exists and is no sample data set'):
        write_sample_data(out, train=4, val=3, size=64)
