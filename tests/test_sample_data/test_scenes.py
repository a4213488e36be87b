import hashlib

import numpy as np
import pytest

from cropr_mm.sample_data import CLASSES, STUFF, THINGS, draw_crop, draw_scene
from cropr_mm.sample_data.scenes import SIDE, VISIBLE
from cropr_mm.sample_data.textures import SHAPES, shape_coverage

SCENES = [draw_scene(0, index) for index in range(60)]


def digest(scene):
    return hashlib.sha256(scene.image.tobytes() + scene.labels.tobytes() + scene.masks.tobytes()).hexdigest()


def test_same_numbers_same_bytes_in_any_order():
    again = {index: digest(draw_scene(0, index)) for index in (7, 3, 50)}
    assert again == {index: digest(SCENES[index]) for index in again}


def test_seeds_streams_and_indices_all_differ():
    digests = {
        digest(draw_scene(seed, index, stream))
        for seed in (0, 1)
        for index in range(5)
        for stream in ('training', 'validation')
    }
    assert len(digests) == 20


def test_labels_are_the_objects_over_stuff():
    for scene in SCENES:
        covered = np.zeros(scene.labels.shape, int)
        for mask, category in zip(scene.masks, scene.categories):
            assert (scene.labels[mask] == len(STUFF) + category).all()
            covered += mask
        assert covered.max() <= 1, 'visible parts overlap'
        assert (scene.labels[covered == 0] < len(STUFF)).all()


def test_an_object_stays_visible_enough():
    least = VISIBLE * 0.7 * SIDE[0] ** 2
    assert all(mask.sum() >= 0.99 * least for scene in SCENES for mask in scene.masks)


def test_every_class_appears_and_counts_are_in_range():
    assert {int(label) for scene in SCENES for label in np.unique(scene.labels)} == set(range(len(CLASSES)))
    assert {len(scene.categories) for scene in SCENES} == {1, 2, 3, 4}


def test_some_objects_hide_others():
    whole = [draw_scene(0, index) for index in range(200)]
    assert any(mask.sum() < 0.9 * SIDE[0] ** 2 for scene in whole for mask in scene.masks)


def test_a_larger_scene_has_as_much_object_in_it():
    def share(size):
        return np.mean([draw_scene(2, index, size=size).masks.sum() / size**2 for index in range(40)])

    assert share(192) == pytest.approx(share(96), rel=0.15)


@pytest.mark.parametrize('name', sorted(SHAPES))
def test_shapes_are_equally_large_whatever_the_angle(name):
    for angle in (0.0, 0.7, 2.1):
        coverage = shape_coverage(name, np.array([30.0, 33.0]), 20.0, angle, 64)
        assert coverage.sum() == pytest.approx(400, rel=0.06)


def test_shape_partly_outside_the_image_is_cut():
    coverage = shape_coverage('square', np.array([0.0, 48.0]), 20.0, 0.3, 96)
    assert coverage.shape == (96, 96) and coverage.sum() == pytest.approx(200, rel=0.1)


def test_crops_show_the_class_they_name():
    seen = set()
    for index in range(60):
        image, labels, category = draw_crop(0, index)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert set(np.unique(labels[labels >= len(STUFF)])) == {len(STUFF) + category}
        seen.add(category)
    assert seen == set(range(len(THINGS)))


@pytest.mark.parametrize(
    'call, text',
    [
        (lambda: draw_scene(-1, 0), 'seed=-1'),
        (lambda: draw_scene(0, -2), 'index=-2'),
        (lambda: draw_scene(0, 0, 'test'), "stream='test'"),
        (lambda: draw_scene(0, 0, size=31), 'size=31'),
    ],
)
def test_bad_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()
