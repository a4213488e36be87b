"""The command that makes the shipped checkpoint."""

import pytest
from safetensors.torch import load_file

from cropr_mm.sample_data import PHOTO_CHECKPOINT, SAMPLE_CHECKPOINT

from ..test_sample_data.photo_folders import write_camvid, write_cifar10


def test_writes_a_checkpoint_of_the_shipped_layout(run_tool, tmp_path):
    out = tmp_path / 'new' / 'vit.safetensors'
    run_tool('pretrain_sample', '--iters', 2, '--batch', 4, '--crops', 8, '--out', out, '--work-dir', tmp_path / 'logs')
    layout = {name: value.shape for name, value in load_file(out).items()}
    assert layout == {name: value.shape for name, value in load_file(SAMPLE_CHECKPOINT).items()}
    assert [path.name for path in out.parent.iterdir()] == ['vit.safetensors']


def test_photographs_give_a_checkpoint_of_the_other_layout(run_tool, tmp_path):
    cifar10, out = write_cifar10(tmp_path / 'cifar10'), tmp_path / 'vit.safetensors'
    shared = ('--photos', cifar10, '--camvid', write_camvid(tmp_path / 'camvid'), '--places', 6, '--iters', 2)
    run_tool('pretrain_sample', *shared, '--batch', 9, '--out', out, '--work-dir', tmp_path / 'logs')
    again = tmp_path / 'again.safetensors'
    run_tool('pretrain_sample', *shared, '--batch', 9, '--out', again, '--start', out, '--work-dir', tmp_path / 'again')
    assert all((load_file(again)[name] - value).abs().max() < 0.02 for name, value in load_file(out).items())
    layout = {name: value.shape for name, value in load_file(out).items()}
    assert layout == {name: value.shape for name, value in load_file(PHOTO_CHECKPOINT).items()}
    log = next((tmp_path / 'logs').glob('*/*.log')).read_text()
    assert 'Iter(val)' in log and 'object:' in log


def test_what_does_not_fit_is_named(run_tool, tmp_path):
    cifar10, camvid = write_cifar10(tmp_path / 'cifar10'), write_camvid(tmp_path / 'camvid')
    for option, value, message in (
        ('--batch', 8, '--batch=8;'),
        ('--start', SAMPLE_CHECKPOINT, f'--start={SAMPLE_CHECKPOINT}: the checkpoint does not fit .* patch_embed'),
        ('--start', 'none', "'none': no such file"),
        ('--camvid', 'none', 'none/images/train: no images; CamVid as'),
        ('--places', 0, '--places=0;'),
    ):
        with pytest.raises(SystemExit, match=message):
            run_tool('pretrain_sample', '--photos', cifar10, '--camvid', camvid, '--places', 6,
                     '--work-dir', tmp_path / 'logs', option, value)  # fmt: skip


def test_a_folder_without_photographs_is_named(run_tool, tmp_path):
    with pytest.raises(SystemExit, match=r'^pretrain_sample.py: error: none/train/airplane: no \.jpg or \.png; CIFAR'):
        run_tool('pretrain_sample', '--photos', 'none', '--work-dir', tmp_path / 'logs')


BAD = [('--iters', 1), ('--batch', 0), ('--crops', 0), ('--seed', -1), ('--out', 'x.pt')]


@pytest.mark.parametrize('option, value', BAD)
def test_bad_options_are_named(run_tool, tmp_path, option, value):
    with pytest.raises(SystemExit, match=f"^pretrain_sample.py: error: {option}='?{value}'?[:;]"):
        run_tool('pretrain_sample', '--work-dir', tmp_path / 'logs', option, value)
