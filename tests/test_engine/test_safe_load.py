"""mmengine checkpoints load under weights_only protection; anything else is refused."""

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.utils import digit_version

from cropr_mm.engine.safe_load import allow_mmengine_checkpoints, check_checkpoint

protected = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6.0'), reason='torch.load is not protected before PyTorch 2.6'
)


@pytest.fixture(autouse=True)
def allow():
    allow_mmengine_checkpoints()


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.fc(torch.stack(inputs)).square().mean())


class LogEverything(Hook):
    """Put into the message hub what metrics and hooks of the mm libraries put there."""

    def after_train_iter(self, runner, *args, **kwargs):
        for i, value in enumerate((1, 2.0, np.float64(3), np.float32(4), np.int64(5), torch.tensor(6.0))):
            runner.message_hub.update_scalar(f'train/value{i}', value)
        note = dict(score=np.float64(0.5), ok=np.bool_(True), ids=np.arange(3))
        runner.message_hub.update_info('note', note)


def train(work_dir, scheduler, iters=4, **kwargs):
    data = [dict(inputs=torch.randn(2), data_samples=torch.zeros(1)) for _ in range(8)]
    runner = Runner(
        Line(),
        str(work_dir),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        param_scheduler=scheduler,
        train_dataloader=dict(
            dataset=data, batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True)
        ),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        custom_hooks=[dict(type='EMAHook'), LogEverything()],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        ),
        log_level='ERROR',
        experiment_name=str(work_dir),
        **kwargs,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    'scheduler',
    [
        dict(type='PolyLR', by_epoch=False, begin=0, end=6),
        dict(type='OneCycleLR', by_epoch=False, eta_max=0.1, total_steps=6),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=6),
    ],
)
def test_runner_resumes_its_own_checkpoint(tmp_path, scheduler):
    train(tmp_path / 'first', scheduler)
    runner = train(tmp_path / 'second', scheduler, iters=6, resume=True, load_from=str(tmp_path / 'first/iter_2.pth'))
    assert runner.iter == 6
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 6
    assert runner.message_hub.get_scalar('train/value2').mean() == 3


@protected
@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_files_of_both_numpy_generations_load(tmp_path, core):
    file = tmp_path / 'a.pth'
    torch.save(dict(history=HistoryBuffer([1.0, 2.0], [1, 1]), score=np.float64(3)), file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / 'b.pth', 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                content = content.replace(b'numpy._core', b'numpy.core').replace(b'numpy.core', core.encode())
                assert f'{core}.multiarray'.encode() in content
            target.writestr(name, content)
    loaded = torch.load(tmp_path / 'b.pth')
    assert loaded['history'].mean() == 1.5
    assert loaded['score'] == 3


class Command:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@protected
@pytest.mark.parametrize('legacy', [False, True])
def test_a_file_that_runs_a_command_is_refused(tmp_path, legacy):
    proof = tmp_path / 'proof'
    torch.save(
        dict(state_dict={}, meta=Command(f'touch {proof}')),
        tmp_path / 'bad.pth',
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'bad.pth')
    assert not proof.exists()


class Getattr:
    def __init__(self, owner, name):
        self.args = (owner, name)

    def __reduce__(self):
        return getattr, self.args


@protected
@pytest.mark.parametrize(
    'owner, name',
    [(HistoryBuffer, '__init__'), (HistoryBuffer, '__subclasses__'), (np.ndarray, 'tofile'), ('text', 'format')],
)
def test_getattr_gives_nothing_but_the_functions_mmengine_saves(tmp_path, owner, name):
    torch.save(Getattr(owner, name), tmp_path / 'bad.pth')
    with pytest.raises(pickle.UnpicklingError, match=name):
        torch.load(tmp_path / 'bad.pth')


@protected
def test_a_class_that_nobody_allowed_is_refused(tmp_path):
    torch.save(dict(meta=pytest.raises), tmp_path / 'other.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'other.pth')


def test_pytorch_before_2_6_finds_everything_by_its_own_name(monkeypatch):
    """There the allow-list is built from ``__module__`` and ``__name__``; a pair of function and name breaks it."""
    listed = []
    monkeypatch.setattr(torch, '__version__', '2.5.1')
    monkeypatch.setattr(torch.serialization, 'add_safe_globals', listed.extend)
    allow_mmengine_checkpoints()
    names = {f'{entry.__module__}.{entry.__name__}': entry for entry in listed}
    for core in ('core', '_core'):
        for function in ('scalar', '_reconstruct'):
            assert callable(names[f'numpy.{core}.multiarray.{function}'])
    assert names['builtins.getattr'] is not getattr
    assert names['builtins.getattr'](HistoryBuffer, 'mean') is HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError, match=r'only .* are allowed'):
        names['builtins.getattr'](HistoryBuffer, '__init__')
    assert {HistoryBuffer, np.ndarray, np.dtype} <= set(names.values())


def test_pytorch_without_an_allow_list_is_left_alone(monkeypatch):
    monkeypatch.delattr(torch.serialization, 'add_safe_globals')
    allow_mmengine_checkpoints()


@protected
def test_importing_the_package_is_enough(tmp_path):
    torch.save(dict(h=HistoryBuffer([1.0], [1])), tmp_path / 'a.pth')
    code = f'import cropr_mm, torch; print(torch.load({str(tmp_path / "a.pth")!r})["h"].mean())'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '1.0', result.stderr


@pytest.mark.parametrize('share', [0.0, 0.3, 0.999])
@pytest.mark.parametrize('format', ['pth', 'safetensors'])
def test_a_cut_off_file_is_named(tmp_path, share, format):
    weights = dict(a=torch.randn(100), b=torch.randn(3))
    whole = tmp_path / f'whole.{format}'
    if format == 'pth':
        torch.save(weights, whole)
    else:
        pytest.importorskip('safetensors.torch').save_file(weights, whole)
    assert check_checkpoint(whole) == whole
    cut = tmp_path / f'cut.{format}'
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(ValueError, match=f'cut.{format}'):
        check_checkpoint(cut, '--resume')


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    torch.save({}, tmp_path / 'iter_10.pth')
    with pytest.raises(FileNotFoundError, match=r"--resume='.*iter_11.pth'.*iter_10.pth"):
        check_checkpoint(tmp_path / 'iter_11.pth', '--resume')


def test_mmengine_reads_safetensors_wherever_it_reads_checkpoints(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    source, target = Line(), Line()
    file = str(tmp_path / 'line.safetensors')
    save_file(source.state_dict(), file, metadata=dict(meta='{"dataset_meta": {"classes": ["a"]}}'))
    checkpoint = load_checkpoint(target, file, map_location=torch.device('cpu'), strict=True)
    assert torch.equal(target.fc.weight, source.fc.weight)
    assert checkpoint['meta'] == dict(dataset_meta=dict(classes=['a']))
    third = Line()
    third.init_cfg = dict(type='Pretrained', checkpoint=file)
    third.init_weights()
    assert torch.equal(third.fc.weight, source.fc.weight)


@pytest.mark.parametrize('header', [None, dict(meta='no JSON'), dict(meta='[1]')])
def test_safetensors_of_other_projects_have_no_meta(tmp_path, header):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file(Line().state_dict(), tmp_path / 'line.safetensors', metadata=header)
    assert load_checkpoint(Line(), str(tmp_path / 'line.safetensors'))['meta'] == {}


def test_a_missing_safetensors_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone.safetensors'):
        load_checkpoint(Line(), str(tmp_path / 'gone.safetensors'))


def test_addresses_keep_their_own_loader():
    loader = CheckpointLoader._get_checkpoint_loader
    assert loader('https://host/line.safetensors') is loader('https://host/line.pth')
    assert loader('line.pth') is not loader('line.safetensors')
