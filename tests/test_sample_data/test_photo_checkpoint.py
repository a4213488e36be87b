"""The checkpoint of photographs that ships with the package loads as any published one, and into its configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file

from cropr_mm import CroprViT
from cropr_mm.cli.model import build_model
from cropr_mm.sample_data import PHOTO_CHECKPOINT

from ..test_tools.conftest import ROOT

ARCH = dict(family='vit', embed_dim=128, depth=8, num_heads=4)


@pytest.fixture(scope='module')
def weights():
    return load_file(PHOTO_CHECKPOINT)


def test_is_a_small_vit_of_half_precision(weights):
    vit = CroprViT(ARCH, img_size=64, patch_size=4)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in vit.state_dict().items()}
    assert all(value.dtype == torch.float16 and torch.isfinite(value).all() for value in weights.values())
    assert Path(PHOTO_CHECKPOINT).stat().st_size < 4e6


def test_loads_through_init_cfg(weights):
    vit = CroprViT(ARCH, img_size=64, patch_size=4, init_cfg=dict(type='Pretrained', checkpoint=PHOTO_CHECKPOINT))
    vit.init_weights()
    for name, value in weights.items():
        torch.testing.assert_close(vit.state_dict()[name], value.float(), rtol=0, atol=0)


@pytest.mark.parametrize('head, library', [('fcn', 'mmseg'), ('mask-rcnn', 'mmdet')])
def test_the_configs_start_from_it(head, library, weights):
    pytest.importorskip(library)
    cfg = Config.fromfile(str(ROOT / 'configs' / 'photos' / f'{head}_dense-vit_photos.py'))
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=PHOTO_CHECKPOINT)
    model = build_model(cfg)
    model.backbone.init_weights()
    state = model.backbone.state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(state[name], value.float(), rtol=0, atol=0)
