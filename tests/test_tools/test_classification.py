"""Image classification from a config: mmpretrain's parts, our tools."""

import csv
import json

import pytest
from parity import import_mmpretrain

from cropr_mm.checkpoint.read import load_file

from .conftest import ROOT, few_iterations

CONFIG = ROOT / 'configs' / 'sample_cls' / 'linear_cropr-vit_crops.py'


@pytest.mark.slow
def test_train_test_sweep_and_deploy(run_tool, tmp_path, monkeypatch):
    """All tools on the third library, whose configs and metrics have another form."""
    import_mmpretrain()
    monkeypatch.chdir(tmp_path)
    few = few_iterations(2, extra=[f'{key}_dataloader.dataset.count=6' for key in ('train', 'val', 'test')])
    run_tool('train', CONFIG, '--work-dir', 'run', *few)
    checkpoint = tmp_path / 'run' / 'iter_2.pth'
    hub = load_file(str(checkpoint))['message_hub']['log_scalars']
    assert all(len(hub[f'train/{name}'].data[0]) == 2 for name in ('loss', 'cropr.loss_aux', 'cropr.aux.5'))

    run_tool('sweep_rates', CONFIG, checkpoint, '--rates', 20, '--rounds', 1, '--out', 'sweep', *few)
    with open('sweep/sweep.csv') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['rate']) for row in rows] == [0, 20]
    run_tool('deploy', CONFIG, checkpoint, 'deployed.pth', *few)
    folded = [*few, 'model.backbone.pruning.deploy=True']
    run_tool('test', CONFIG, 'deployed.pth', '--work-dir', 'test', *folded)
    (file,) = (tmp_path / 'test').glob('*/*.json')
    accuracy = json.loads(file.read_text())['accuracy/top1']
    assert accuracy == pytest.approx(float(rows[1]['accuracy/top1']), rel=1e-4)
    assert accuracy == pytest.approx(100 * round(accuracy * 6 / 100) / 6, abs=1e-3)  # of six crops
