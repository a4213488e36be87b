"""An installed package has configs, tools and model index where mim looks for them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from parity import import_mmpretrain

ROOT = Path(__file__).resolve().parents[2]


def test_mim_finds_what_the_model_index_names(tmp_path):
    for library in ('mmseg', 'mmdet'):
        pytest.importorskip(library)
    import_mmpretrain()  # whose configs those for ImageNet inherit
    build = ['build_py', '--build-lib', tmp_path / 'lib']
    command = [sys.executable, 'setup.py', '--quiet', 'egg_info', '--egg-base', tmp_path, *build]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    mim = tmp_path / 'lib' / 'cropr_mm' / '.mim'
    assert (mim / 'tools' / 'train.py').is_file() and not list(mim.rglob('__pycache__'))
    metafiles = yaml.safe_load((mim / 'model-index.yml').read_text())['Import']
    models = [model for file in metafiles for model in yaml.safe_load((mim / file).read_text())['Models']]
    assert models
    for model in models:
        assert Config.fromfile(str(mim / model['Config'])).model.backbone.type == 'CroprViT'
