"""Two processes on CPU (gloo), started as a user starts them: DDP and FSDP train the same model."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from helpers import shards_on_a_cpu
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from cropr_mm.cli.run import build_runner
from cropr_mm.engine import CroprFSDPStrategy
from cropr_mm.utils.compat import remove_prefix

from ..test_tools.conftest import CONFIGS, ROOT, few_iterations

ITERATIONS = 6

# What each process sees: the progress of the curriculum, what was logged and the whole weights at the end.
WITNESS = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from cropr_mm import CroprViT
from cropr_mm.utils.compat import remove_prefix

@HOOKS.register_module()
class Witness(Hook):
    priority = 'LOWEST'

    def before_train(self, runner):
        self.seen = dict(progress=[], logs=[])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        vit, = (m for m in runner.model.modules() if isinstance(m, CroprViT))
        assert vit.aux_is_read
        self.seen['progress'].append(vit.pruning_progress)
        self.seen['logs'].append({key: torch.as_tensor(value).item() for key, value in outputs.items()})
        if runner.iter + 1 == runner.max_iters:
            model, units = runner.model, FSDP.fsdp_modules(runner.model)
            self.seen['units'] = len(units)
            with FSDP.summon_full_params(model, writeback=False):
                self.seen['weights'] = {
                    remove_prefix(key.replace('_fsdp_wrapped_module.', ''), 'module.'): value.detach().clone()
                    for key, value in model.named_parameters()}
            torch.save(self.seen, f'{runner.work_dir}/rank{runner.rank}.pt')
"""

# Rules by layer, by name and by number of dimensions, and a norm over all parameters: what sharding may upset.
CONFIG = """
_base_ = ['{base}'{fsdp}]
custom_imports = dict(imports=['cropr_mm', 'witness'])
custom_hooks = [dict(type='CroprHook', ramp=0.5), dict(type='Witness')]
runner_type = 'FlexibleRunner'
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', clip_grad=dict(max_norm=1.0), accumulative_counts={accumulate},
    constructor='CroprLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7, custom_keys={{'blocks.1.attn': dict(lr_mult=0.5)}}),
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.5))
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=4)]
"""


@pytest.fixture(scope='module')
def finished():
    """Folders of trainings by what they were called with: several tests begin with the same ones."""
    return {}


@pytest.fixture
def train(data_folder, finished, tmp_path_factory):
    """``train(work_dir, config, …)`` in two processes; returns what each of them saw, and the checkpoint."""
    (data_folder / 'witness.py').write_text(WITNESS)
    base, fsdp = CONFIGS / 'fcn_cropr-vit_sample.py', ROOT / 'configs' / '_base_' / 'fsdp.py'
    for accumulate in (1, 2):
        for name, more in (('ddp', ''), ('fsdp', f", '{fsdp}'")):
            text = CONFIG.format(base=base, fsdp=more, accumulate=accumulate)
            (data_folder / f'{name}{accumulate}.py').write_text(text)

    def run(work_dir, config, *options, count=ITERATIONS, extra=()):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = str(free.getsockname()[1])
        no_chance = ['train_dataloader.dataset.pipeline.2.prob=0.0', 'default_hooks.checkpoint.interval=3']
        command = [str(ROOT / 'tools' / 'dist_train.sh'), config, '2', '--work-dir', work_dir, *options,
                   *few_iterations(count, extra=[*no_chance, *extra])]  # fmt: skip
        paths = os.pathsep.join([str(data_folder), *filter(None, [os.environ.get('PYTHONPATH')])])
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT=port, PYTHONPATH=paths)
        folder, key = data_folder / work_dir, (config, options, count, extra)
        if key not in finished:
            process = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert process.returncode == 0, process.stdout[-4000:]
            if not options:  # whoever resumes changes the folder
                finished[key] = shutil.copytree(folder, tmp_path_factory.mktemp('finished') / work_dir)
        else:
            shutil.copytree(finished[key], folder)
        seen = [torch.load(folder / f'rank{rank}.pt') for rank in (0, 1)]
        return seen, CheckpointLoader.load_checkpoint(str(folder / f'iter_{count}.pth'), 'cpu')

    return run


def assert_close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f'{k}: {m}')


@shards_on_a_cpu
@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_sharded_training_takes_the_steps_of_ddp(train, accumulate):
    """Two processes each, as sharding upsets rules by name, layer and norm unnoticed: weights and logs must agree."""
    pytest.importorskip('mmseg')
    ddp, ddp_file = train('ddp', f'ddp{accumulate}.py')
    fsdp, fsdp_file = train('fsdp', f'fsdp{accumulate}.py')
    assert [rank['units'] for rank in (*ddp, *fsdp)] == [0, 0, 9, 9]  # the model and its eight blocks
    for seen in (*ddp, *fsdp):
        assert seen['progress'] == pytest.approx([min(1, i / (ITERATIONS / 2)) for i in range(ITERATIONS)])
        assert all(log['cropr.loss_aux'] > 0 and 'cropr.aux.5' in log for log in seen['logs'])
    for ours, theirs in zip(fsdp, ddp):
        for a, b in zip(ours['logs'], theirs['logs']):
            assert a == pytest.approx(b, rel=1e-4)
        assert_close(ours['weights'], theirs['weights'])
    for ranks in (ddp, fsdp):
        assert all(torch.equal(value, ranks[1]['weights'][key]) for key, value in ranks[0]['weights'].items())
    # (mmengine's DDPStrategy leaves the wrapper's name before them; whatever loads a checkpoint strips it.)
    assert_close(fsdp_file['state_dict'], {remove_prefix(k, 'module.'): v for k, v in ddp_file['state_dict'].items()})
    initial, last = ddp[0]['logs'][0]['loss'], ddp[0]['logs'][-1]['loss']
    assert last < initial - 1, 'the model has hardly moved, so the comparison says little'


@shards_on_a_cpu
@pytest.mark.slow
def test_sharded_training_in_half_precision(train):
    """That FSDP's own mixed precision, with recomputed blocks, trains the same model but for rounding."""
    pytest.importorskip('mmseg')
    full, _ = train('full', 'fsdp1.py')
    half = ('strategy.model_wrapper.mixed_precision.param_dtype=bfloat16', 'model.backbone.with_cp=True')
    rounded, file = train('half', 'fsdp1.py', extra=half)
    for ours, theirs in zip(rounded[0]['logs'], full[0]['logs']):
        assert ours != theirs
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=0.01)
    assert {value.dtype for value in file['state_dict'].values() if value.is_floating_point()} == {torch.float32}


def test_averaged_weights_and_shards_do_not_go_together():
    cfg = Config(dict(launcher='pytorch', strategy=dict(type='CroprFSDPStrategy'), custom_hooks=[dict(type='EMAHook')]))
    with pytest.raises(ValueError, match='custom_hooks has EMAHook, which copies whole weights'):
        build_runner(cfg)


def test_sharding_needs_the_original_parameters():
    with pytest.raises(ValueError, match=r'strategy.model_wrapper.use_orig_params=False leaves no parameters'):
        CroprFSDPStrategy(model_wrapper=dict(use_orig_params=False))


@shards_on_a_cpu
@pytest.mark.slow
def test_sharded_training_resumes(train, run_tool, data_folder, monkeypatch):
    """FSDP from FSDP, DDP from FSDP and FSDP from DDP, each exactly, and one process evaluates the file."""
    pytest.importorskip('mmseg')
    whole, file = train('whole', 'fsdp1.py')
    (data_folder / 'whole' / 'last_checkpoint').write_text(str(data_folder / 'whole' / 'iter_3.pth'))
    (data_folder / 'whole' / f'iter_{ITERATIONS}.pth').unlink()
    resumed, again = train('whole', 'fsdp1.py', '--resume')
    assert resumed[0]['progress'] == whole[0]['progress'][3:]
    assert resumed[0]['logs'] == whole[0]['logs'][3:]
    assert_close(resumed[1]['weights'], whole[1]['weights'])
    assert_close(again['state_dict'], file['state_dict'])
    assert again['optimizer']['param_groups'] == file['optimizer']['param_groups']
    assert again['optimizer']['base_param_settings'] == file['optimizer']['base_param_settings']

    # The file is whole: DDP resumes from it as FSDP does, and one process evaluates it by the same config.
    (data_folder / 'whole' / 'last_checkpoint').write_text(str(data_folder / 'whole' / 'iter_3.pth'))
    unsharded, _ = train('whole', 'ddp1.py', '--resume')
    assert unsharded[0]['units'] == 0
    assert_close(unsharded[0]['weights'], whole[0]['weights'])
    # The other way round, too: iterations 1 to 3 under DDP, 4 to 6 sharded.
    train('other', 'ddp1.py')
    (data_folder / 'other' / 'last_checkpoint').write_text(str(data_folder / 'other' / 'iter_3.pth'))
    sharded, _ = train('other', 'fsdp1.py', '--resume')
    assert sharded[0]['units'] == 9
    assert len(sharded[0]['logs']) == ITERATIONS - 3
    assert_close(sharded[0]['weights'], whole[0]['weights'])
    monkeypatch.syspath_prepend(data_folder)
    run_tool('test', 'fsdp1.py', 'whole/iter_3.pth', '--work-dir', 'tested', *few_iterations(1))
    model = CheckpointLoader.load_checkpoint('whole/iter_3.pth', 'cpu')['state_dict']
    assert model['backbone.blocks.7.attn.qkv.weight'].shape == (384, 128)
