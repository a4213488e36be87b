"""Every sample config is short, builds, learns from a batch and predicts."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from cropr_mm import CroprHook, CroprPruner
from cropr_mm.benchmark.flops import tokens_per_block
from cropr_mm.cli.model import build_model

from .conftest import CONFIGS, ROOT

NAMES = sorted(file.stem for file in CONFIGS.glob('*.py'))


def test_all_pruners_have_a_config():
    assert {name.split('_')[1].replace('-vit', '') for name in NAMES} == {
        'dense', 'oracle', 'random', 'variance', 'attention', 'nonsalient',
        'cropr', 'cropr-multilabel', 'cropr-patch', 'cropr-retrofit'}  # fmt: skip


@pytest.mark.parametrize('file', sorted(ROOT.glob('configs/*/*.py')), ids=lambda file: file.stem)
def test_configs_are_short(file):
    assert len(file.read_text().splitlines()) < 40


@pytest.mark.parametrize('name', NAMES)
def test_starts_from_the_package_keeps_24_tokens_trains_and_predicts(name, data_folder):
    """One build for all of it: building is most of the time."""
    pytest.importorskip('mmseg' if name.startswith('fcn') else 'mmdet')
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    settings = cfg.model.backbone.init_cfg
    assert settings.type == 'Pretrained' and settings.checkpoint.startswith(str(ROOT / 'cropr_mm'))
    model = build_model(cfg)
    tokens = tokens_per_block(model.backbone, 96, 96)
    assert tokens == [145] * 8 if 'dense' in name else tokens[6:] == [24, 145]
    batches = {}
    for loader in ('train_dataloader', 'test_dataloader'):
        dataset = DATASETS.build(cfg[loader].dataset)
        assert len(dataset) == (24 if loader == 'train_dataloader' else 6)
        batches[loader] = pseudo_collate([dataset[0], dataset[1]])

    model.train()
    CroprHook().attach(model)
    losses = model(**model.data_preprocessor(batches['train_dataloader'], True), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    cropr = any(isinstance(module, CroprPruner) for module in model.modules())
    assert ('cropr.loss_aux' in log) == cropr
    assert all(p.grad is not None for n, p in model.backbone.named_parameters() if n != 'mask_token'), name

    model.eval()
    results = model.test_step(batches['test_dataloader'])
    assert len(results) == 2
    if name.startswith('fcn'):
        assert results[0].pred_sem_seg.shape == (96, 96)
        assert results[0].seg_logits.data.shape[0] == 9
    else:
        assert results[0].pred_instances.masks.shape[1:] == (96, 96)
