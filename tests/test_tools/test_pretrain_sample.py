"""The command that makes the shipped checkpoint."""

import pytest
from safetensors.torch import load_file

from cropr_mm.sample_data import SAMPLE_CHECKPOINT


def test_writes_a_checkpoint_of_the_shipped_layout(run_tool, tmp_path):
    out = tmp_path / 'new' / 'vit.safetensors'
    run_tool('pretrain_sample', '--iters', 2, '--batch', 4, '--crops', 8, '--out', out, '--work-dir', tmp_path / 'logs')
    layout = {name: value.shape for name, value in load_file(out).items()}
    assert layout == {name: value.shape for name, value in load_file(SAMPLE_CHECKPOINT).items()}
    assert [path.name for path in out.parent.iterdir()] == ['vit.safetensors']


BAD = [('--iters', 1), ('--batch', 0), ('--crops', 0), ('--seed', -1), ('--out', 'x.pt')]


@pytest.mark.parametrize('option, value', BAD)
def test_bad_options_are_named(run_tool, tmp_path, option, value):
    with pytest.raises(SystemExit, match=f'^pretrain_sample.py: error: {option}={value};'):
        run_tool('pretrain_sample', '--work-dir', tmp_path / 'logs', option, value)
