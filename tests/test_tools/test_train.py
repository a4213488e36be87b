"""Training as a user starts it: killed and resumed, in two processes, and with what is wrong in the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from two_processes import free_ports, train_in_two_processes

from cropr_mm.checkpoint.read import load_file

from .conftest import CONFIGS, ROOT, few_iterations

CONFIG = CONFIGS / 'fcn_cropr-vit_sample.py'
NO_FLIPS = ['train_dataloader.dataset.pipeline.2.prob=0.0']


def command(*arguments):
    return [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py'), *map(str, arguments)]


def environment():
    return dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable)


def weights(file):
    return load_file(str(file))['state_dict']


@pytest.mark.slow
def test_killed_and_resumed_ends_where_an_uninterrupted_run_ends(data_folder, run_tool):
    """A process that is really killed: only that shows that what is on disk is enough, to the bit."""
    pytest.importorskip('mmseg')
    options = ['--no-validate', *few_iterations(24, extra=[*NO_FLIPS, 'default_hooks.checkpoint.interval=6'])]
    with open('killed.log', 'w') as log:
        run = subprocess.Popen(command(CONFIG, '--work-dir', 'killed', *options),
                               env=environment(), stdout=log, stderr=log)  # fmt: skip
    last = data_folder / 'killed' / 'last_checkpoint'
    while not last.exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, (data_folder / 'killed.log').read_text()
    assert not (data_folder / 'killed' / 'iter_24.pth').exists()
    run_tool('train', CONFIG, '--work-dir', 'killed', '--resume', *options)
    assert any('resumed epoch: 0, iter: ' in log.read_text() for log in (data_folder / 'killed').glob('*/*.log'))
    run_tool('train', CONFIG, '--work-dir', 'whole', *options)

    first, second = (load_file(str(data_folder / name / 'iter_24.pth')) for name in ('whole', 'killed'))
    assert any(key.startswith('backbone.pruners.5.aux_head') for key in first['state_dict'])
    for part in ('state_dict', 'optimizer'):
        assert_equal(first[part], second[part], part)
    assert first['param_schedulers'] == second['param_schedulers']
    logged = [c['message_hub']['log_scalars']['train/cropr.loss_aux'].data[0].tolist() for c in (first, second)]
    assert logged[0] == logged[1]


def assert_equal(a, b, where):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f'{where}.{key}')
    else:
        assert a == b, where


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(data_folder, run_tool):
    """DDP, the hook's losses and the shell script together, as a user starts them, against one process."""
    pytest.importorskip('mmseg')
    # Plain gradient descent: Adam would blow rounding up where a gradient is zero but for rounding.
    plain = [*NO_FLIPS, 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.1']
    (port,) = free_ports(1)
    run = subprocess.run([str(ROOT / 'tools' / 'dist_train.sh'), str(CONFIG), '2', '--no-validate', '--work-dir', 'two',
                          *few_iterations(8, 2, plain)], env=dict(environment(), PORT=port),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    run_tool('train', CONFIG, '--no-validate', '--work-dir', 'one', *few_iterations(8, 4, plain))
    one, two = (weights(data_folder / name / 'iter_8.pth') for name in ('one', 'two'))
    assert one.keys() == two.keys()
    moved = 0.0
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f'{k}: {m}')
        moved = max(moved, one[key].abs().max().item())
    assert moved > 0


@pytest.mark.slow
def test_retrofit_starts_from_a_dense_checkpoint_and_runs_in_two_processes(data_folder, run_tool):
    """Two processes: DDP must accept that most of the model is frozen."""
    pytest.importorskip('mmseg')
    dense, config = CONFIG.with_name('fcn_dense-vit_sample.py'), CONFIG.with_name('fcn_cropr-retrofit-vit_sample.py')
    run_tool('train', dense, '--no-validate', '--work-dir', 'dense', *few_iterations(1))
    few = few_iterations(3, 2, ['load_from=dense/iter_1.pth'])
    train_in_two_processes([[config, '--no-validate', '--work-dir', 'two', '--resume', *few]], data_folder)
    before, after = (weights(data_folder / name) for name in ('dense/iter_1.pth', 'two/iter_3.pth'))
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {key.split('.')[1] for key in after.keys() - before.keys()} == {'pruners'}
    assert not any('pruners' in key for key in before)


ONE_LIBRARY = """
import importlib.abc, os, runpy, sys
import mmcv, mmengine.runner, mmengine.config.config
from mmengine.config import Config

mmengine.config.config.FormatCode = lambda text, **_: (text, True)  # prints no config neatly: seconds less
blocked, argv, stock, backbone = {arguments!r}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == blocked:
            raise ModuleNotFoundError(name + ' is blocked', name=name)

assert not any(library in sys.modules for library in ('mmseg', 'mmdet', 'cropr_mm'))
sys.meta_path.insert(0, Block())
sys.argv = argv
runpy.run_path(argv[0], run_name='__main__')

from cropr_mm import swap_backbone
from cropr_mm.cli.model import build_model
build_model(swap_backbone(Config.fromfile(stock), backbone))
assert blocked not in sys.modules
"""
SWAPPED = dict(
    arch=dict(family='vit', embed_dim=32, depth=4, num_heads=2),
    img_size=64,
    pruning=dict(pruner=dict(type='DifficultyPruner', num_classes=19), rate=2),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    'library, absent, config, stock',
    [
        ('mmseg', 'mmdet', CONFIG, 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024'),
        ('mmdet', 'mmseg', CONFIGS / 'mask-rcnn_cropr-vit_sample.py', 'retinanet/retinanet_r18_fpn_1x_coco'),
    ],
)
def test_one_library_is_enough(library, absent, config, stock, data_folder):
    """To train, and then to swap the backbone of one of its own configs: a process, as this one has both libraries."""
    module = pytest.importorskip(library)
    argv = [str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', 'run', *few_iterations(1)]
    stock = Path(module.__file__).parent / '.mim' / 'configs' / f'{stock}.py'
    code = ONE_LIBRARY.format(arguments=(absent, argv, str(stock), SWAPPED))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                         env=dict(environment(), PYTHONPATH=paths))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (data_folder / 'run' / 'iter_1.pth').is_file()


def test_what_is_wrong_is_said_in_one_line(run_tool, tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^train.py: error: config 'configs/nothing.py': no such file"):
        run_tool('train', 'configs/nothing.py')
    with pytest.raises(SystemExit, match=r'train_dataloader.dataset.data_root: .*/data/sample does not exist. '
                                         r'Make it with: python tools/make_sample_data.py data/sample'):  # fmt: skip
        run_tool('train', CONFIG)
    with pytest.raises(SystemExit, match=r"--resume='gone.pth': no such file"):
        run_tool('train', CONFIG, '--resume', 'gone.pth')
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 and no more')
    with pytest.raises(SystemExit, match=r"--resume='cut.pth' is not a complete checkpoint"):
        run_tool('train', CONFIG, '--resume', 'cut.pth')
    with pytest.raises(SystemExit, match=r"checkpoint='gone.pth': no such file"):
        run_tool('test', CONFIG, 'gone.pth')


@pytest.mark.parametrize('config', [CONFIG, CONFIG.with_name('fcn_dense-vit_sample.py')], ids=['hook', 'no hook'])
def test_an_optimizer_of_resnets_and_a_missing_import_are_in_the_log(data_folder, run_tool, config):
    pytest.importorskip('mmseg')
    (data_folder / 'mine.py').write_text(
        f'_base_ = {str(config)!r}\ncustom_imports = None\n'
        "optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))"
    )
    run_tool('train', 'mine.py', '--no-validate', '--work-dir', 'run', *few_iterations(1))
    (file,) = (data_folder / 'run').glob('*/*.log')
    log = file.read_text()
    assert log.count('the optimizer is SGD at lr=0.01') == 1
    assert "custom_imports=dict(imports=['cropr_mm']) is missing in the config" in log


def test_what_is_left_of_the_old_backbone_ends_in_one_line(run_tool, tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(f'_base_ = {str(CONFIG)!r}\nmodel = dict(pretrained="resnet.pth")')
    with pytest.raises(SystemExit, match=r"^train.py: error: model.pretrained='resnet.pth' holds weights of another"):
        run_tool('train', 'mine.py')
