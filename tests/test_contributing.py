"""CONTRIBUTING.md: somebody who follows the recipe of a pruner, in a copy of the repository, has one."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEP = re.compile(r'^\*\*\d\.\*\* .*?`(?P<file>[\w./]+\.\w+)`.*?(?=^\*\*\d\.\*\*|^Any config)', re.S | re.M)
CODE = re.compile(r'^```(?P<kind>\w+)\n(?P<code>.*?)^```', re.S | re.M)
FORWARD = """
import torch
from mmengine.registry import MODELS
import cropr_mm

def test_config_alone_prunes_with_it():
    arch = dict(family='vit', embed_dim=16, depth=5, num_heads=2, mlp_ratio=2.0)
    pruning = dict(pruner=dict(type='CentrePruner'), target_ratio=0.5)
    model = MODELS.build(dict(type='CroprViT', arch=arch, img_size=32, patch_size=4, pruning=pruning))
    neck = MODELS.build(dict(type='TokenReinsertion'))
    (maps,) = neck(model.eval()(torch.randn(2, 3, 32, 40)))
    assert maps.shape == (2, 16, 8, 10)
    assert 30 <= sum(model.schedule.counts((8, 10), model.num_prefix_tokens)) < 80
    assert all(isinstance(pruner, cropr_mm.CentrePruner) for pruner in model.pruners.values())

def test_package_is_the_copy():
    assert cropr_mm.__file__.startswith({root!r})
"""


def apply(diff: str, text: str) -> str:
    """The text with the lines that a diff adds; its other lines must be there, one after another."""
    lines = diff.splitlines()
    before = ''.join(f'{line[1:]}\n' for line in lines if line[:1] != '+')
    after = ''.join(f'{line[1:]}\n' for line in lines)
    assert text.count(before) == 1, f'not there, or more than once:\n{before}'
    return text.replace(before, after)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """The repository after the recipe; returns its folder."""
    root = tmp_path_factory.mktemp('clone')
    ignored = shutil.ignore_patterns('__pycache__')
    for folder in ('cropr_mm', 'docs/api'):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for file in ('pyproject.toml', 'tests/conftest.py', 'tests/helpers.py'):
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    recipe = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    steps = list(STEP.finditer(recipe))
    assert len(steps) == 4
    for step in steps:
        file = root / step['file']
        for block in CODE.finditer(step[0]):
            if block['kind'] == 'diff':
                file.write_text(apply(block['code'], file.read_text(encoding='utf-8')), encoding='utf-8')
            else:
                assert not file.exists()
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block['code'], encoding='utf-8')
    return root


def run(root: Path, *command: str) -> str:
    environ = {**os.environ, 'PYTHONPATH': str(root)}
    done = subprocess.run([sys.executable, *command], cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_test_passes_and_a_config_alone_prunes_with_it(copy):
    (copy / 'tests' / 'test_forward.py').write_text(FORWARD.replace('{root!r}', repr(str(copy))), encoding='utf-8')
    assert '3 passed' in run(copy, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests')


def test_lint_finds_nothing_in_it(copy):
    pytest.importorskip('ruff')
    for command in (('check',), ('format', '--check')):
        run(copy, '-m', 'ruff', *command, '--no-cache', 'cropr_mm/models/pruning', 'tests/test_models')


def test_reference_has_it(copy):
    assert '\n::: cropr_mm.CentrePruner\n' in (copy / 'docs' / 'api' / 'pruners.md').read_text(encoding='utf-8')


def test_pre_commit_has_the_versions_of_the_extras():
    extras = configparser.ConfigParser(interpolation=None)
    extras.read(ROOT / 'setup.cfg')
    versions = extras['options.extras_require']['tests'].split()
    hooks = (ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8')
    pinned = re.findall(r"additional_dependencies: \['((?:ruff|vermin)\b.*?)'\]", hooks)
    assert len(pinned) == 3 and set(pinned) <= set(versions)
