"""mmengine reads its own checkpoints and .safetensors through this package; torch.load stays as it was."""

import io
import pickle
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint

from cropr_mm.checkpoint.read import CheckpointError, check_checkpoint, load_file

from . import hostile


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
    loaded = load_file(str(tmp_path / 'b.pth'))
    assert loaded['history'].mean() == 1.5
    assert loaded['score'] == 3


numbers = arrays(
    st.sampled_from(['<f8', '>f4', '<i8', '|u1', '|b1', '<c16', '<U3', '|S2']), array_shapes(min_dims=0, min_side=0)
)
keys = st.integers(1 - 2**31, 2**31 - 1)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**200), 2**200), st.floats(), st.text(), st.binary(), numbers),
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(), keys, st.tuples(keys, st.text())), inner),
        st.dictionaries(st.text(), inner).map(OrderedDict),
        st.sets(st.one_of(st.text(), keys)),
        st.dictionaries(st.text(), st.integers()).map(Counter),
    ),
    max_leaves=8,
)


def same(a, b):
    """Equal with types, NaN included."""
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=plain, legacy=st.booleans(), protocol=st.sampled_from([2, 4]))
def test_plain_data_comes_back_as_it_was(content, legacy, protocol, tmp_path):
    file = str(tmp_path / 'a.pth')
    content = dict(content=content)
    torch.save(content, file, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    assert same(pickle.loads(pickle.dumps(content, protocol)), load_file(file))  # NumPy swaps bytes as it unpickles


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    'kind', [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
)
def test_tensors_come_back_as_they_were(tmp_path, legacy, kind):
    whole = torch.arange(12).reshape(3, 4).to(kind)
    parameter = torch.nn.Parameter(torch.randn(3))
    tensors = [whole, whole.t(), whole[1:, ::2], whole[:0], whole[:1].expand(5, 4), torch.tensor(3.0)]
    marked, tuned = torch.randn(2), torch.nn.Parameter(torch.randn(2), requires_grad=False)
    marked.note = tuned.note = 'an attribute, as those of FSDP have'
    state = OrderedDict(a=parameter, b=torch.randn(2, requires_grad=True), c=marked, d=tuned)
    state._metadata = OrderedDict([('', dict(version=1))])
    file = tmp_path / 'a.pth'
    torch.save(dict(tensors=tensors, state=state, dtype=kind), file, _use_new_zipfile_serialization=not legacy)
    for source in (str(file), io.BytesIO(file.read_bytes())):
        loaded = load_file(source)
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(tensors, loaded['tensors']))
        assert type(loaded['state']['a']) is torch.nn.Parameter and loaded['state']['b'].requires_grad
        assert torch.equal(loaded['state']['c'], marked) and type(loaded['state']['d']) is torch.nn.Parameter
        assert torch.equal(loaded['state']['d'], tuned) and not loaded['state']['d'].requires_grad
        assert loaded['state']._metadata == state._metadata and loaded['dtype'] is kind
        assert loaded['tensors'][0].data_ptr() == loaded['tensors'][1].data_ptr()  # still one storage


def test_the_package_leaves_torch_load_as_it_was(tmp_path):
    """A class that the package's own reader knows is still refused elsewhere in the process."""
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'a.pth')
    assert load_file(str(tmp_path / 'a.pth'))['history'].mean() == 1
    assert torch.load is torch.serialization.load and torch.load.__module__ == 'torch.serialization'
    allowed = getattr(torch.serialization, 'get_safe_globals', list)()  # by torch's own parts, as they are imported
    assert not [entry for entry in allowed if str(getattr(entry, '__module__', entry)).startswith(('mm', 'cropr'))]
    with pytest.raises((pickle.UnpicklingError, RuntimeError), match=r'HistoryBuffer|weights_only'):
        torch.load(tmp_path / 'a.pth', weights_only=True)


def test_where_the_protection_of_torch_is_forced_it_is_left_to_torch(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(a=torch.ones(2)), tmp_path / 'a.pth')
    assert load_file(str(tmp_path / 'a.pth'))['a'].tolist() == [1, 1]
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match=r'b\.pth'):
        load_file(str(tmp_path / 'b.pth'))


def test_where_the_protection_of_torch_is_forced_storages_are_still_measured(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    large = hostile.program(hostile.tensor(of=hostile.storage(count=10**6), size=(10**6,)))
    with pytest.raises(CheckpointError, match='of which the file has 16 bytes'):
        load_file(str(hostile.write_archive(tmp_path / 'a.pth', large)))


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
