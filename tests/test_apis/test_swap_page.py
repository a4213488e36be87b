"""What README.md and docs/swap.md tell to write: it builds and trains, before and after."""

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from cropr_mm.cli.model import build_model
from cropr_mm.utils.libraries import register_library

from ..test_heads.steps import det_batch, seg_batch, shrink, step
from ..test_heads.table import Entry
from .pages import README, blocks, page

DIFFS = blocks(page('swap'), 'diff')
SMALL = {
    "'vit-base'": "dict(family='vit', embed_dim=32, depth=4, num_heads=2)",
    '768': '32',
    'img_size=512': 'img_size=96',
    'img_size=1024': 'img_size=96',
    'target_ratio=0.8': 'target_ratio=0.6',
    "init_cfg=dict(type='Pretrained', checkpoint='mae_pretrain_vit_base.pth'),": '',  # no such file here
}


def config(text, folder):
    """A config of this text, shrunken, with its library imported."""
    for long, short in SMALL.items():
        text = text.replace(long, short)
    file = folder / 'config.py'
    file.write_text(text)
    cfg = Config.fromfile(str(file))
    shrink(cfg.model, 96)
    register_library(cfg)
    return cfg


def side(diff, sign):
    """One of the two files that a diff stands between."""
    return '\n'.join(line[1:] for line in diff.splitlines() if line[:1] in (' ', sign))


@pytest.mark.slow
@pytest.mark.parametrize('number, library', enumerate(('mmseg', 'mmdet', 'mmdet')))
def test_diffs_train(number, library, tmp_path):
    pytest.importorskip(library)
    assert len(DIFFS) == 3
    before, after = (side(DIFFS[number], sign) for sign in '-+')
    old = config(before, tmp_path)
    assert old.model.backbone.type.startswith('ResNet')
    build_model(old)
    cfg = config(after, tmp_path)
    batch = seg_batch if library == 'mmseg' else det_batch
    step(cfg, lambda: batch(cfg, Entry('', side=96)))
    if 'constructor' in after:
        groups = build_optim_wrapper(build_model(cfg), cfg.optim_wrapper).optimizer.param_groups
        assert len({group['lr'] for group in groups}) == 6  # embedding, four blocks, the rest


@pytest.mark.slow
@pytest.mark.parametrize('library', ['mmseg', 'mmdet'])
def test_one_call(library, tmp_path, monkeypatch):
    """README's is for a segmentor, the page's for a detector."""
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text, number = (README.read_text(), 0) if library == 'mmseg' else (page('swap'), 1)
    code = blocks(text, 'python')[0]
    for long, short in SMALL.items():
        code = code.replace(long, short)
    name = 'my_config' if library == 'mmseg' else 'my_detector'
    (tmp_path / f'{name}.py').write_text(side(DIFFS[number], '-'))
    exec(code, {})
    cfg = Config.fromfile(f'{name}_cropr.py')
    assert cfg.optim_wrapper.optimizer.type == 'AdamW' and cfg.optim_wrapper.optimizer.lr == 1e-4
    assert library == 'mmdet' or cfg.param_scheduler[-1].eta_min == 0
    shrink(cfg.model, 96)
    batch = seg_batch if library == 'mmseg' else det_batch
    step(cfg, lambda: batch(cfg, Entry('', side=96)))


@pytest.mark.slow
def test_by_hand(tmp_path):
    """README's config."""
    pytest.importorskip('mmseg')
    cfg = config(blocks(README.read_text(), 'python')[1], tmp_path)
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    assert [schedule.eta_min for schedule in cfg.param_scheduler] == [0]
    step(cfg, lambda: seg_batch(cfg, Entry('', side=96)))
