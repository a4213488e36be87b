"""Every stock head takes a CroprViT: one training step and one prediction per folder of stock configs.

With ``CROPR_TEST_REDUCER=ToMeReducer`` another reducer stands in place of the learned pruner.
"""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import parity
import pytest
import torch
from helpers import PYTORCH_2_1

from cropr_mm import CroprHook
from cropr_mm.cli.model import build_model
from cropr_mm.engine.retrofit import evaluate_all_but_pruners, freeze_all_but_pruners

from . import steps, table

DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'heads.md'
SEG, DET = {**table.MMSEG, **table.MMSEG_MORE}, {**table.MMDET, **table.MMDET_MORE}


def run(library, folder, entry):
    """Losses of a step and the predictions after it; or the error that the table foretells."""
    configs = steps.config_folder(pytest.importorskip(library))
    if not steps.config_file(configs, folder, entry).exists():
        pytest.skip('this version of the library does not ship it')
    if entry.lacks and importlib.util.find_spec(entry.lacks):
        pytest.skip(f'{entry.lacks} is installed here; the table says what happens without it')
    if 'mmpretrain' in (entry.error or '') and 'mmpretrain' in sys.modules:  # a test before this one loaded it
        test = f'{Path(__file__).resolve()}::test_{library}[{folder}]'
        subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', test], check=True)
        return None
    importlib.import_module(f'{library}.models')  # before mmpretrain, which mmdet would pick up where it is there
    if entry.needs:
        parity.import_mmpretrain()
    if entry.needs == 'timm':
        parity.import_timm()
    if entry.error:
        with pytest.raises(Exception, match=entry.error if steps.LEARNS else None):  # some are about learning
            run_once(library, configs, folder, entry)
        return None
    return run_once(library, configs, folder, entry)


def run_once(library, configs, folder, entry):
    cfg = steps.swapped(configs, folder, entry)
    make = steps.seg_batch if library == 'mmseg' else steps.det_batch
    return steps.step(cfg, lambda: make(cfg, entry))


@pytest.mark.parametrize('folder', SEG)
def test_mmseg(folder):
    if folder == 'dnlnet' and PYTORCH_2_1:
        pytest.skip('DNLHead by itself cannot train there: it changes what its gradient needs')
    result = run('mmseg', folder, SEG[folder])
    if result is not None:
        side = SEG[folder].side
        assert [sample.pred_sem_seg.data.shape for sample in result[1]] == [(1, side, side)]


@pytest.mark.parametrize('folder', DET)
def test_mmdet(folder):
    result = run('mmdet', folder, DET[folder])
    if result is not None:
        (sample,) = result[1]
        assert 'pred_panoptic_seg' in sample or sample.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('library, entries', [('mmseg', table.MMSEG), ('mmdet', table.MMDET)])
def test_no_folder_is_left_out(library, entries):
    """Of the versions that set-up installs; others may ship more."""
    module = pytest.importorskip(library)
    if module.__version__ != table.VERSIONS[library]:
        pytest.skip(f'the table is of {library} {table.VERSIONS[library]}')
    folders = {folder.name for folder in steps.config_folder(module).iterdir() if folder.is_dir()}
    assert folders - {'_base_', '__pycache__'} == set(entries)


def test_the_docs_say_what_is_tested():
    """``python tests/test_heads/table.py`` writes the tables."""
    text = DOCS.read_text()
    assert table.summary() in text
    parts = table.tables()
    assert all(part in text for part in parts) and table.further() in text
    assert text.count('\n|') == sum(part.count('\n|') + 1 for part in parts)  # and no rows besides


@pytest.mark.parametrize('folder', ['ddrnet', 'pidnet'])
def test_a_head_without_a_loss_in_evaluation_can_be_retrofitted(folder):
    configs = steps.config_folder(pytest.importorskip('mmseg'))
    importlib.import_module('mmseg.models')
    cfg = steps.swapped(configs, folder, table.MMSEG[folder])
    model = build_model(cfg)
    freeze_all_but_pruners(model)
    evaluate_all_but_pruners(model)
    CroprHook(ramp=0).attach(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if '.pruners.' not in name}
    model.train_step(
        steps.seg_batch(cfg, table.MMSEG[folder]), steps.KeepGradients(torch.optim.SGD(model.parameters(), 1.0))
    )
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(pruner.queries.grad.abs().sum() > 0 for pruner in model.backbone.pruners.values())
