"""Two processes on CPU (gloo) run tools/train.py: DDP and FSDP train the same model."""

import pytest
import torch
from helpers import shards_on_a_cpu
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from two_processes import train_in_two_processes

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


# What is trained: config, more options of tools/train.py, more of the config.
HALF = ('strategy.model_wrapper.mixed_precision.param_dtype=bfloat16', 'model.backbone.with_cp=True')
TRAININGS = {
    'ddp1': ('ddp1', [], []),
    'fsdp1': ('fsdp1', [], []),
    'ddp2': ('ddp2', ['--no-validate'], []),
    'fsdp2': ('fsdp2', ['--no-validate'], []),
    'half': ('fsdp1', ['--no-validate'], HALF),
    'fsdp from fsdp': ('fsdp1', ['--no-validate', '--resume'], []),
    'ddp from fsdp': ('ddp1', ['--no-validate', '--resume'], []),
    'fsdp from ddp': ('fsdp1', ['--no-validate', '--resume'], []),
}


@pytest.fixture(scope='module')
def folder(sample_data, tmp_path_factory):
    """Where all of ``TRAININGS`` have run, in the same two processes: each has a folder of its name."""
    pytest.importorskip('mmseg')
    folder = tmp_path_factory.mktemp('distributed')
    (folder / 'data').mkdir()
    (folder / 'data' / 'sample').symlink_to(sample_data)
    (folder / 'witness.py').write_text(WITNESS)
    base, fsdp = CONFIGS / 'fcn_cropr-vit_sample.py', ROOT / 'configs' / '_base_' / 'fsdp.py'
    for accumulate in (1, 2):
        for name, more in (('ddp', ''), ('fsdp', f", '{fsdp}'")):
            text = CONFIG.format(base=base, fsdp=more, accumulate=accumulate)
            (folder / f'{name}{accumulate}.py').write_text(text)
    no_chance = ['train_dataloader.dataset.pipeline.2.prob=0.0', 'default_hooks.checkpoint.interval=3']
    commands = []
    for name, (config, options, extra) in TRAININGS.items():
        if '--resume' in options:  # from the middle of a training that will have run by then
            (folder / name).mkdir()
            (folder / name / 'last_checkpoint').write_text(str(folder / f'{name.split()[-1]}1' / 'iter_3.pth'))
        few = few_iterations(ITERATIONS, extra=[*no_chance, *extra])
        commands.append([f'{config}.py', '--work-dir', name, *options, *few])
    train_in_two_processes(commands, folder)
    return folder


@pytest.fixture
def train(folder):
    """``train(name)`` → what each of the two processes saw in the training of this name, and its last checkpoint."""

    def load(name):
        seen = [torch.load(folder / name / f'rank{rank}.pt') for rank in (0, 1)]
        return seen, CheckpointLoader.load_checkpoint(str(folder / name / f'iter_{ITERATIONS}.pth'), 'cpu')

    return load


def assert_close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f'{k}: {m}')


@shards_on_a_cpu
@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_sharded_training_takes_the_steps_of_ddp(train, accumulate):
    """Sharding can upset rules by name, layer and norm unnoticed: weights and logs must agree.

    The first test that runs pays for all trainings of this file.
    """
    ddp, ddp_file = train(f'ddp{accumulate}')
    fsdp, fsdp_file = train(f'fsdp{accumulate}')
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
    full, _ = train('fsdp1')
    rounded, file = train('half')
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
def test_sharded_training_resumes(train, folder, run_tool, monkeypatch):
    """FSDP from FSDP, DDP from FSDP and FSDP from DDP, each exactly, and one process evaluates the file."""
    whole, file = train('fsdp1')
    resumed, again = train('fsdp from fsdp')
    assert resumed[0]['progress'] == whole[0]['progress'][3:]
    assert resumed[0]['logs'] == whole[0]['logs'][3:]
    assert_close(resumed[1]['weights'], whole[1]['weights'])
    assert_close(again['state_dict'], file['state_dict'])
    assert again['optimizer']['param_groups'] == file['optimizer']['param_groups']
    assert again['optimizer']['base_param_settings'] == file['optimizer']['base_param_settings']

    # The file is whole: DDP resumes from it as FSDP does, and one process evaluates it by the same config.
    unsharded, _ = train('ddp from fsdp')
    assert unsharded[0]['units'] == 0
    assert len(unsharded[0]['logs']) == ITERATIONS - 3
    assert_close(unsharded[0]['weights'], whole[0]['weights'])
    # The other way round, too: iterations 1 to 3 under DDP, 4 to 6 sharded.
    sharded, _ = train('fsdp from ddp')
    assert sharded[0]['units'] == 9
    assert len(sharded[0]['logs']) == ITERATIONS - 3
    assert_close(sharded[0]['weights'], whole[0]['weights'])
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    run_tool('test', 'fsdp1.py', 'fsdp1/iter_3.pth', '--work-dir', 'tested', *few_iterations(1))
    model = CheckpointLoader.load_checkpoint('fsdp1/iter_3.pth', 'cpu')['state_dict']
    assert model['backbone.blocks.7.attn.qkv.weight'].shape == (384, 128)
