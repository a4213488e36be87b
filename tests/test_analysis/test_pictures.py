"""Pictures are of the right size and clear where a token stayed."""

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from cropr_mm.analysis.pictures import TokenPicture, draw_pictures, labels_of, render_picture
from cropr_mm.analysis.routing import KEPT

pytest.importorskip('matplotlib')
Image = pytest.importorskip('PIL.Image')


def picture(**labels):
    exits = np.full((3, 4), KEPT)
    exits[0] = 0
    exits[1] = 2
    return TokenPicture(np.full((24, 30, 3), 255, np.uint8), exits, patch_size=8, **labels)


def test_early_exits_are_coloured_and_kept_tokens_clear(tmp_path):
    file = draw_pictures([picture()], tmp_path / 'new' / 'tokens.png', blocks=[0, 1, 2], pixels=300)
    pixels = np.asarray(Image.open(file).convert('RGB')).astype(int)
    assert pixels.shape[1] == 600
    panel = pixels[35:260, 320:590]
    thirds = [panel[10:60].mean((0, 1)), panel[90:140].mean((0, 1)), panel[165:215].mean((0, 1))]
    assert thirds[0].mean() < thirds[1].mean() < 250
    assert (thirds[2] == 255).all()


def test_prediction_and_truth(tmp_path):
    label = dict(sem_seg=np.zeros((24, 30), int))
    boxes = dict(boxes=np.array([[1.0, 2, 9, 9]]), masks=np.ones((1, 24, 30), bool), labels=np.array([1]), scores=None)
    meta = dict(classes=('a', 'b'), palette=[(255, 0, 0), (0, 0, 255)])
    rows = [picture(prediction=label, truth=label), picture(prediction=boxes, truth=dict(boxes, masks=None))]
    file = draw_pictures(rows, tmp_path / 'tokens.png', [0, 1, 2], meta, pixels=200)
    pixels = np.asarray(Image.open(file).convert('RGB'))
    assert pixels.shape[1] == 800
    assert (pixels[100, 450] == (255, 0, 0)).all()


def test_an_image_in_memory_is_the_one_in_the_file(tmp_path):
    file = draw_pictures([picture()], tmp_path / 'tokens.png', [0, 1, 2], pixels=200)
    assert np.array_equal(render_picture(picture(), [0, 1, 2], pixels=200), np.asarray(Image.open(file).convert('RGB')))


@pytest.mark.parametrize(
    ('kind', 'masks', 'expected'),
    [
        ('pred', None, [4, 5, 8, 10]),  # at the size of the file
        ('gt', None, [4, 5, 8, 10]),
        ('gt', (1, 20, 40), [4, 5, 8, 10]),
        ('gt', (1, 10, 20), [8, 10, 16, 20]),  # at the size that the model saw
    ],
)
def test_boxes_lie_where_the_model_saw_them(kind, masks, expected):
    instances = InstanceData(bboxes=torch.tensor([[8.0, 10, 16, 20]]), labels=torch.tensor([1]))
    if masks:
        instances.masks = torch.ones(masks, dtype=torch.bool)
    sample = BaseDataElement(metainfo=dict(ori_shape=(20, 40), img_shape=(10, 20)), **{f'{kind}_instances': instances})
    assert labels_of(sample, kind, (10, 20, 3))['boxes'].tolist() == [expected]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match='pictures is empty'):
        draw_pictures([], tmp_path / 'a.png', [])
