"""Models for inference, from a config and a checkpoint."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from cropr_mm.cli.model import build_model, load_model
from cropr_mm.cli.run import build_runner
from cropr_mm.engine import OracleHook


def test_a_data_preprocessor_beside_the_model_joins_it():
    """As mmpretrain's configs have it, and as mmengine's Runner treats it."""
    beside = dict(type='BaseDataPreprocessor')
    model = dict(type='ToyModelForLaunch')
    assert isinstance(build_model(Config(dict(model=model, data_preprocessor=beside))).given, dict)
    own = dict(model, data_preprocessor=dict(own=True))
    assert build_model(Config(dict(model=own, data_preprocessor=beside))).given == dict(own=True)


def test_models_without_the_hook_compute_bfloat16_too(monkeypatch):
    asked = []
    for room in ('model', 'run'):
        monkeypatch.setattr(f'cropr_mm.cli.{room}.let_mmcv_take_bfloat16', lambda: asked.append(True))
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: cfg)
    build_model(Config(dict(model=dict(type='ToyModelForLaunch'))))
    build_runner(Config(dict(model=dict(type='ToyModelForLaunch'), launcher='none')))
    assert asked == [True, True]


@MODELS.register_module()
class ToyModelForLaunch(torch.nn.Module):
    def __init__(self, data_preprocessor=None):
        super().__init__()
        self.given = data_preprocessor


@pytest.mark.parametrize('kind', [OracleHook, 'mmengine.OracleHook', 'OracleHook'])
def test_the_oracle_is_attached_however_its_type_is_written(kind):
    cfg = dict(model=dict(type='ToyModelForLaunch'), custom_hooks=[dict(type='NoHookThatExists'), dict(type=kind)])
    with pytest.raises(ValueError, match='OracleHook: the model has no OraclePruner'):  # which attaching finds out
        build_model(Config(cfg))


def test_a_checkpoint_that_leaves_weights_random_is_refused(tmp_path):
    backbone = dict(type='CroprViT', arch=dict(family='vit', embed_dim=16, depth=4, num_heads=2), img_size=32)
    scorer = dict(type='CroprPruner', aux_head=dict(type='PatchSegAuxHead', num_classes=3))

    def config(pruner):
        return Config(dict(model={**backbone, 'patch_size': 8, 'pruning': pruner and dict(pruner=pruner, rate=4)}))

    def saved(pruner):
        torch.save(dict(state_dict=build_model(config(pruner)).state_dict()), tmp_path / 'weights.pth')
        return str(tmp_path / 'weights.pth')

    queries = next(load_model(config(scorer), saved(scorer)).pruners.children()).queries
    assert queries.shape == (16, 16)
    load_model(config(dict(type='RandomPruner')), saved(scorer))  # what is left over does no harm
    with pytest.raises(ValueError, match=r'weights.pth: does not fit .*; missing: pruners.0.queries, .* and \d+ more'):
        load_model(config(scorer), saved(None))
    coarse = {**scorer, 'aux_head': {**scorer['aux_head'], 'query_stride': 2}}
    with pytest.raises(ValueError, match=r'weights.pth: .*does not fit .*pruners.0.queries'):
        load_model(config(coarse), saved(scorer))
