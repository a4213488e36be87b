"""The configs on scenes of photographs: what they keep, and that they learn and predict."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from cropr_mm import CroprHook
from cropr_mm.benchmark.flops import tokens_per_block
from cropr_mm.cli.model import build_model
from cropr_mm.sample_data.photo_scenes import write_photo_scenes

from ..test_sample_data.photo_folders import write_camvid, write_cifar10
from .conftest import ROOT

CONFIGS = ROOT / 'configs' / 'photos'
HEADS = [('fcn', 'mmseg'), ('mask-rcnn', 'mmdet')]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    sources = write_cifar10(folder / 'cifar10'), write_camvid(folder / 'camvid')
    write_photo_scenes(folder / 'data' / 'photos', *sources, train=3, val=2, progress=False)
    return folder


def load(head, name):
    return Config.fromfile(str(CONFIGS / f'{head}_{name}-vit_photos.py'))


@pytest.mark.parametrize('head, library', HEADS)
@pytest.mark.parametrize('name', ['dense', 'cropr'])
def test_keeps_40_tokens_trains_and_predicts(name, head, library, photos, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(photos)
    cfg = load(head, name)
    model = build_model(cfg)
    tokens = tokens_per_block(model.backbone, 64, 64)
    assert tokens == [257] * 8 if name == 'dense' else tokens[6:] == [40, 257]
    batches = {}
    for loader, count in (('train_dataloader', 3), ('test_dataloader', 2)):
        dataset = DATASETS.build(cfg[loader].dataset)
        assert len(dataset) == count
        batches[loader] = pseudo_collate([dataset[0], dataset[1]])
        assert all(image.shape == (3, 64, 64) for image in batches[loader]['inputs'])

    model.train()
    CroprHook().attach(model)
    losses = model(**model.data_preprocessor(batches['train_dataloader'], True), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total) and ('cropr.loss_aux' in log) == (name == 'cropr')
    model.eval()
    for result in model.test_step(batches['test_dataloader']):
        if head == 'fcn':
            assert result.seg_logits.data.shape == (14, 64, 64)
        else:
            assert result.pred_instances.masks.shape[1:] == (64, 64)


@pytest.mark.parametrize('head, library', HEADS)
def test_configs_share_all_but_the_pruning(head, library):
    pytest.importorskip(library)
    dense, cropr = load(head, 'dense'), load(head, 'cropr')
    classes = dense.train_dataloader.dataset.metainfo['classes']
    assert cropr.model.backbone.pop('pruning').pruner.num_classes == len(classes)
    assert cropr.pop('custom_hooks') == [dict(type='CroprHook', ramp=0.5)]
    assert cropr.to_dict() == dense.to_dict()
    if head == 'fcn':
        assert [classes[label] for label in dense.object_classes] == list(classes[4:])


def test_training_says_where_the_data_come_from(run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'data/photos does not exist\. Make it with: .*/make_photo_scenes\.py'):
        run_tool('train', CONFIGS / 'fcn_dense-vit_photos.py')
