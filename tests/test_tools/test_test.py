"""tools/test.py reports no number of a checkpoint that leaves weights random."""

import re

import pytest
import torch
from mmengine.config import Config

from cropr_mm.cli.model import build_model

from .conftest import CONFIGS
from .test_rates_and_deploy import QUICK

pytest.importorskip('mmseg')
CONFIG = CONFIGS / 'fcn_cropr-vit_sample.py'
DENSE = CONFIGS / 'fcn_dense-vit_sample.py'


def save(name, config=CONFIG, without='nothing', **settings):
    cfg = Config.fromfile(str(config))
    cfg.model.backbone.update(settings)
    weights = build_model(cfg).state_dict()
    for key in [key for key in weights if key.startswith(without)]:
        del weights[key]
    torch.save(dict(meta={}, state_dict=weights), name)
    return name


SCORERS = (dict(config=DENSE), 'w.pth: does not fit the model of the config; missing: backbone.pruners.0')


@pytest.mark.parametrize(
    'settings, words, options, ema',
    [
        (*SCORERS, [], False),
        (*SCORERS, ['--tta'], False),
        (*SCORERS, [], True),
        (dict(without='decode_head.conv_seg'), 'missing: decode_head.conv_seg.weight', ['--tta'], False),
        (
            dict(without='backbone.norm'),
            'the checkpoint does not fit the CroprViT of the config (missing: norm.',
            [],
            True,
        ),
        (dict(without='backbone'), 'missing: backbone.cls_token', [], False),
    ],
    ids=['no scorers', 'tta', 'ema', 'half a head', 'half a backbone', 'no backbone'],
)
def test_weights_that_stay_random_end_the_run(settings, words, options, ema, data_folder, run_tool):
    checkpoint = save('w.pth', **settings)
    config = CONFIG
    if ema:
        config = data_folder / 'ema.py'
        hooks = [dict(type='CroprHook'), dict(type='EMAHook')]
        config.write_text(f"_base_ = ['{CONFIG}']\ncustom_hooks = {hooks}\n")
    with pytest.raises(SystemExit, match=rf'test.py: error: .*{re.escape(words)}'):
        run_tool('test', config, checkpoint, *options, '--work-dir', 'test', '--cfg-options', *QUICK)
    assert not list((data_folder / 'test').glob('*/*.json'))  # where the metrics would be


def test_another_image_size_is_evaluated(data_folder, run_tool):
    checkpoint = save('w.pth', img_size=128)
    run_tool('test', CONFIG, checkpoint, '--work-dir', 'test', '--cfg-options', *QUICK)
    assert list((data_folder / 'test').glob('*/*.json'))
