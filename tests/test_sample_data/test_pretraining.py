"""Mosaics of photographs on places, and the classes of their patches."""

import pytest
import torch

from cropr_mm.sample_data import pretraining
from cropr_mm.sample_data.pretraining import CropModel, mosaic, patch_shares

CLASSES, STUFF, SIDE, PATCH = 5, 2, 32, 4
ARCH = dict(family='vit', embed_dim=16, depth=2, num_heads=2)


@pytest.mark.parametrize('patch', [4, 8])
def test_shares_of_patches_are_counted_pixel_by_pixel(patch):
    labels = torch.randint(CLASSES, (2, 16, 24), dtype=torch.uint8)
    expected = torch.zeros(2, (16 // patch) * (24 // patch), CLASSES)
    for image in range(2):
        for row in range(16):
            for column in range(24):
                place = row // patch * (24 // patch) + column // patch
                expected[image, place, int(labels[image, row, column])] += 1 / patch**2
    torch.testing.assert_close(patch_shares(labels, patch, CLASSES), expected)


@pytest.fixture
def batch():
    """Nine photographs of one colour each, photograph i has the value 10 i and the class i modulo 5, on one place.

    The place has the value 200, and on its left half stuff 1 of 2.
    """
    photos = (10.0 * torch.arange(9))[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone()
    objects = torch.nn.functional.one_hot(torch.arange(9) % CLASSES, CLASSES).float()
    stuff = torch.zeros(2, STUFF, 2 * SIDE, 2 * SIDE)
    stuff[:, 1, :, :SIDE] = 1
    return photos, objects, torch.full((2, 3, 2 * SIDE, 2 * SIDE), 200.0), stuff


@pytest.mark.parametrize('across, mosaics', [(2, 2), (3, 1)])
def test_shares_add_up_to_one_where_all_has_a_class(batch, across, mosaics):
    photos, objects, places, stuff = batch
    stuff[:, 0] = 1 - stuff[:, 1]
    images, objects, shares = mosaic(photos, objects, places, stuff, PATCH, across)
    assert images.shape == (mosaics, 3, 2 * SIDE, 2 * SIDE) and objects.shape == (mosaics, CLASSES)
    assert shares.shape == (mosaics, 256, STUFF + CLASSES)
    assert shares.min() >= 0 and objects.min() >= 0
    torch.testing.assert_close(shares.sum(-1), torch.ones(mosaics, 256))
    area = shares[..., STUFF:].mean(1)
    torch.testing.assert_close(objects, area / area.sum(-1, keepdim=True))


def test_each_patch_has_the_classes_of_its_pixels(batch, monkeypatch):
    """With photographs that look as they are and have hard edges, a pixel's value tells its class."""
    monkeypatch.setattr(pretraining, '_vary', lambda images: images)
    outline = pretraining._outline
    monkeypatch.setattr(pretraining, '_outline', lambda *args: (outline(*args) >= 0.5).float())
    torch.manual_seed(1)
    images, _, shares = mosaic(*batch, PATCH, 2)
    mixed = 0
    for number, image in enumerate(images[:, 0]):
        assert set(image.unique().tolist()) <= {40.0 * number + 10 * i for i in range(4)} | {200.0}
        for place in range(256):
            row, column = (PATCH * i for i in divmod(place, 16))
            expected = torch.zeros(STUFF + CLASSES)
            for y in range(row, row + PATCH):
                for x in range(column, column + PATCH):
                    value = float(image[y, x])
                    if value < 200:
                        expected[STUFF + round(value / 10) % CLASSES] += 1 / PATCH**2
                    elif x < SIDE:
                        expected[1] += 1 / PATCH**2
            torch.testing.assert_close(shares[number, place], expected)
            mixed += int((expected > 0).sum() > 1)
    assert mixed > 0, 'the mosaic is shifted by less than a patch, too'


def test_to_test_nothing_moves_and_every_photograph_is_there(batch):
    (images, objects, shares), (again, _, _) = (mosaic(*batch, PATCH, 2, vary=False) for _ in range(2))
    assert torch.equal(images, again)
    for place, value in enumerate((0.0, 10.0, 20.0, 30.0)):
        row, column = divmod(place, 2)
        assert images[0, 0, SIDE * row + SIDE // 2, SIDE * column + SIDE // 2] == value
    assert images[0, 0, 0, 0] == 200 and objects[0].tolist() == pytest.approx([0.25] * 4 + [0], abs=1e-3)
    assert shares[0, 0].argmax() == 1 and shares[0, 8 * 8 + 4].argmax() == STUFF


def test_some_photographs_are_left_out_and_some_stay_whole():
    torch.manual_seed(0)
    share = pretraining._outline(2000, SIDE, True).mean((1, 2, 3))
    assert (share == 0).float().mean() == pytest.approx(0.2, abs=0.03)
    assert (share == 1).float().mean() == pytest.approx(0.15, abs=0.03)
    assert share[(share > 0) & (share < 1)].min() > 0.6


def test_values_stay_near_those_of_images():
    """Colours and light move by 1.4 and by 42 at most, no zoom makes values of its own."""
    for _ in range(20):
        photos, places = torch.rand(8, 3, SIDE, SIDE) * 255, torch.rand(2, 3, 2 * SIDE, 2 * SIDE) * 255
        new = mosaic(photos, torch.eye(8), places, torch.zeros(2, STUFF, 2 * SIDE, 2 * SIDE), PATCH, 2)[0]
        assert torch.isfinite(new).all()
        assert new.min() > -255 and new.max() < 2 * 255


@pytest.mark.parametrize('mosaics', [False, True])
def test_every_position_is_learned_and_the_middle_is_tested(mosaics):
    places = torch.randint(0, 256, (5, 3, 64, 64)).byte(), torch.randint(0, STUFF, (5, 64, 64)).byte()
    model = CropModel(ARCH, PATCH, CLASSES, CLASSES + STUFF * mosaics, places if mosaics else None)
    batch = dict(
        images=torch.randint(0, 256, (9, 3, SIDE, SIDE), dtype=torch.uint8),
        labels=torch.randint(CLASSES, (9, SIDE, SIDE), dtype=torch.uint8),
        category=torch.randint(CLASSES, (9,)),
    )
    touched = torch.zeros(16 * 16 if mosaics else 24 * 24, dtype=torch.bool)
    for _ in range(60):
        model.zero_grad()
        losses = model(**batch, mode='loss')
        assert set(losses) == {'loss_object', 'loss_patch'}
        sum(losses.values()).backward()
        touched |= model.vit.pos_embed.grad[0, 1:].abs().sum(-1) > 0
    assert touched.float().mean() > 0.9
    model.eval()
    first, second = (model(**batch, mode='predict') for _ in range(2))
    assert first == second and len(first) == (2 if mosaics else 9)
    assert all(0 <= result['patch'] <= 1 for result in first)
