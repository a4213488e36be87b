"""Mosaics of photographs, and the classes of their patches."""

import pytest
import torch

from cropr_mm.sample_data.pretraining import CropModel, mosaic, patch_shares

CLASSES, SIDE, PATCH = 5, 32, 4
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
    """Nine images of one colour each: image i has the value 10 i and the class i modulo 5."""
    values = 10.0 * torch.arange(9)
    objects = torch.nn.functional.one_hot(torch.arange(9) % CLASSES, CLASSES).float()
    return values[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone(), objects


@pytest.fixture
def nothing_varies(monkeypatch):
    """Every draw of a photograph's looks is the one that changes nothing; mosaics are still shifted."""

    def draw(tensor, low, high):
        return tensor.fill_(0.0 if low == -high and high != 1 else 1.0)

    monkeypatch.setattr(torch.Tensor, 'uniform_', draw)


@pytest.mark.parametrize('across, mosaics', [(2, 2), (3, 1)])
def test_shares_add_up_to_one(batch, across, mosaics):
    images, objects, shares = mosaic(*batch, PATCH, across)
    assert images.shape == (mosaics, 3, 2 * SIDE, 2 * SIDE) and objects.shape == (mosaics, CLASSES)
    assert shares.shape == (mosaics, 256, CLASSES)
    assert shares.min() >= 0 and objects.min() >= 0
    torch.testing.assert_close(shares.sum(-1), torch.ones(mosaics, 256))
    torch.testing.assert_close(objects, shares.mean(1))


def test_each_patch_has_the_classes_of_its_pixels(batch, nothing_varies):
    torch.manual_seed(1)
    images, _, shares = mosaic(*batch, PATCH, 2)
    mixed = 0
    for number, image in enumerate(images[:, 0]):
        assert sorted(image.unique().tolist()) == [40.0 * number + 10 * i for i in range(4)]
        for place in range(256):
            rows, columns = (slice(PATCH * i, PATCH * i + PATCH) for i in divmod(place, 16))
            expected = torch.zeros(CLASSES)
            for value in image[rows, columns].flatten().tolist():
                expected[round(value / 10) % CLASSES] += 1 / PATCH**2
            torch.testing.assert_close(shares[number, place], expected)
            mixed += int((expected > 0).sum() > 1)
    assert mixed > 0, 'the mosaic is shifted by less than a patch, too'


def test_to_test_nothing_moves(batch):
    images, _, shares = mosaic(*batch, PATCH, 2, vary=False)
    whole = batch[0][:4, 0].unflatten(0, (2, 2)).transpose(1, 2).flatten(2).flatten(0, 1)
    torch.testing.assert_close(images[0, 0], whole)
    assert set(shares.unique().tolist()) == {0.0, 1.0}


def test_values_stay_near_those_of_images():
    """Colours and light move by 1.4 and by 42 at most, no zoom makes values of its own."""
    for _ in range(20):
        images = torch.rand(8, 3, SIDE, SIDE) * 255
        new = mosaic(images, torch.eye(8), PATCH, 2)[0]
        assert torch.isfinite(new).all()
        assert new.min() > -255 and new.max() < 2 * 255


@pytest.mark.parametrize('mosaics', [False, True])
def test_every_position_is_learned_and_the_middle_is_tested(mosaics):
    model = CropModel(ARCH, PATCH, CLASSES, CLASSES, mosaics)
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
