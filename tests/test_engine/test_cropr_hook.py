"""CroprHook inside a real mmengine training."""

import copy
import weakref
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import cropr, det_sample, small_vit
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, autocast
from torch import nn

from cropr_mm import CroprHook, CroprViT, TokenReinsertion
from cropr_mm.checkpoint.read import load_file
from cropr_mm.engine.retrofit import evaluate_all_but_pruners, wrap_again
from cropr_mm.models.layers import DropPath

PRUNING = dict(pruner=cropr(), rate=8)


class Segmentor(BaseModel):
    """What mm's models have in common: forward(inputs, data_samples, mode), losses in a dict."""

    def __init__(self, pruning=PRUNING, backbone=None):
        super().__init__()
        self.backbone = backbone or small_vit(pruning=pruning)
        self.neck = TokenReinsertion()
        self.head = nn.Conv2d(16, 3, 1)
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        if isinstance(self.backbone, CroprViT):
            self.seen.append((mode, self.training, self.backbone.pruning_progress))
            x = self.head(self.neck(self.backbone(inputs))[-1])
        else:
            x = self.backbone(inputs)
        if mode == 'loss':
            return dict(loss_main=x.square().mean(), acc=x.detach().mean())
        return x if mode == 'tensor' else [x.mean()]


def step(model, optim=None):
    data = dict(inputs=[torch.randn(3, 24, 24)] * 2, data_samples=[det_sample([0]), det_sample([1, 2])])
    optim = optim or OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    return model.train_step(data, optim)


def attached(model, **settings):
    hook = CroprHook(**settings)
    hook.attach(model)
    return hook


# --- losses ---------------------------------------------------------------------------------------------------


def test_losses_join_the_dict_of_the_model():
    model = Segmentor()
    attached(model)
    losses = model([torch.randn(3, 24, 24)], [det_sample([0])], mode='loss')
    assert list(losses) == ['loss_main', 'acc', 'cropr.loss_aux', *(f'cropr.aux.{i}' for i in range(3))]


def test_the_sum_over_the_pruners_enters_the_total_once():
    model = Segmentor()
    attached(model)
    log = step(model)
    torch.testing.assert_close(log['loss'], log['loss_main'] + log['cropr.loss_aux'])
    torch.testing.assert_close(log['cropr.loss_aux'], sum(log[f'cropr.aux.{i}'] for i in range(3)))


def test_data_samples_are_found_by_position_and_by_name():
    model = Segmentor()
    attached(model)
    images, samples = [torch.randn(3, 24, 24)], [det_sample([0])]
    by_name = model(inputs=images, data_samples=samples, mode='loss')
    by_position = model(images, samples, 'loss')
    torch.testing.assert_close(by_name['cropr.loss_aux'], by_position['cropr.loss_aux'])


@pytest.mark.parametrize('mode', ['tensor', 'predict'])
def test_other_modes_are_left_alone(mode):
    model = Segmentor().eval()
    images = [torch.randn(3, 24, 24)]
    before = model(images, mode=mode)
    attached(model)
    assert torch.equal(model(images, mode=mode)[0], before[0])


def test_two_backbones_share_the_loss():
    model = Segmentor()
    model.second = small_vit(pruning=PRUNING)
    inner = model.forward

    def forward(inputs, data_samples=None, mode='tensor'):
        model.second(torch.stack(inputs))
        return inner(inputs, data_samples, mode)

    model.forward = forward
    attached(model)
    before = model.second.pruners['0'].queries.detach().clone()
    log = step(model)
    assert not torch.equal(model.second.pruners['0'].queries, before)
    torch.testing.assert_close(log['loss'], log['loss_main'] + log['cropr.loss_aux'])


@pytest.mark.parametrize('pruning', [None, dict(pruner=dict(type='RandomPruner'), rate=8)], ids=['dense', 'random'])
def test_models_with_nothing_to_learn_pass_with_the_hook(pruning):
    model = Segmentor(pruning)
    attached(model)
    for _ in range(2):
        assert not [key for key in step(model) if key.startswith('cropr')]


@pytest.mark.parametrize('pruning', [None, dict(pruner=dict(type='RandomPruner'), rate=8)], ids=['dense', 'random'])
def test_models_with_nothing_to_learn_need_no_hook(pruning):
    model = Segmentor(pruning)
    for _ in range(2):
        step(model)


def test_a_forgotten_hook_is_named():
    model = Segmentor()
    step(model)
    with pytest.raises(RuntimeError, match=r"the pruners learn nothing. Add custom_hooks=\[dict\(type='CroprHook'\)\]"):
        step(model)


def test_a_model_without_cropr_vit_is_named():
    with pytest.raises(ValueError, match=r"Segmentor has no CroprViT; set model.backbone.type to 'CroprViT'"):
        CroprHook().attach(Segmentor(backbone=nn.Conv2d(3, 3, 1)))


def test_a_second_hook_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'CroprHook: Segmentor has one already; leave one of them in custom_hooks'):
        train(tmp_path, by_epoch=False, hooks=[CroprHook()])


def test_a_training_that_an_exception_ended_is_no_obstacle_to_the_next(tmp_path):
    """mmengine calls no hook then; the next one to attach takes the place of the one that stayed."""

    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise KeyboardInterrupt

    model = Segmentor()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'first', by_epoch=False, model=model, hooks=[Stop()])
    assert model._forward_hooks and model.backbone.aux_is_read
    _, progress = train(tmp_path / 'second', by_epoch=False, model=model)
    assert progress[-1] == 1 and not model._forward_hooks and not model.backbone.aux_is_read
    first = attached(model)
    second = attached(model)
    assert len(model._forward_hooks) == 1 and model.backbone.aux_is_read
    first.detach()  # has nothing left to undo
    assert model._forward_hooks and model.backbone.aux_is_read
    second.detach()
    assert not model._forward_hooks


def test_losses_that_the_hook_never_sees_are_an_error():
    """A step that calls the model's loss past its forward, as a wrapper of one's own may do."""
    model = Segmentor()
    hook = attached(model)
    images = torch.randn(1, 3, 24, 24)
    model.backbone(images)
    with pytest.raises(RuntimeError, match=r"CroprHook reads them where the model is called with mode='loss'"):
        model.backbone(images)
    hook.detach()


@pytest.mark.parametrize('mode', ['tensor', 'predict'])
def test_other_modes_in_training_are_no_steps(mode):
    model = Segmentor()
    attached(model)
    for _ in range(2):
        model([torch.randn(3, 24, 24)], mode=mode)
    losses = model([torch.randn(3, 24, 24)], [det_sample([0])], mode='loss')
    assert 'cropr.loss_aux' in losses


def test_an_evaluation_has_no_losses_of_a_step_before():
    model = Segmentor()
    images = torch.randn(1, 3, 24, 24)
    model.backbone(images)
    model.eval()
    model.backbone(images)
    assert model.backbone.aux_losses([det_sample([0])]) == {}
    with pytest.raises(RuntimeError, match='were not used'):  # and the step's still count as unread
        model.train().backbone(images)


def test_attaching_again_replaces_and_detaching_takes_everything_back():
    model = Segmentor()
    hook = attached(model)
    hook.attach(model)
    assert len(model._forward_hooks) == 1
    model.backbone.pruning_progress = 0.3
    hook.detach()
    assert not model._forward_hooks and model.backbone.pruning_progress == 1.0 and not model.backbone.aux_is_read


def test_the_hook_adds_no_state():
    model = Segmentor()
    before = list(model.state_dict())
    attached(model)
    step(model)
    assert list(model.state_dict()) == before
    copy.deepcopy(model)  # no graph of the last step remains


# --- accumulation and mixed precision -------------------------------------------------------------------------


def gradients(optim_of):
    torch.manual_seed(0)
    model = Segmentor()
    attached(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    optim = optim_of(optimizer)
    torch.manual_seed(1)
    for _ in range(2):
        data = dict(inputs=[torch.randn(3, 24, 24)], data_samples=[det_sample([1])])
        with optim.optim_context(model):
            losses = model(**data, mode='loss')
        optim._inner_count += 1
        optim.backward(optim.scale_loss(model.parse_losses(losses)[0]))
    return [p.grad.clone() for p in model.parameters()]


def test_gradient_accumulation_averages_the_auxiliary_losses_too():
    accumulated = gradients(lambda o: OptimWrapper(o, accumulative_counts=2))
    summed = gradients(OptimWrapper)
    for a, b in zip(accumulated, summed):
        torch.testing.assert_close(a, b / 2)


class CpuAmp(OptimWrapper):
    """mmengine's AmpOptimWrapper as far as a CPU has it."""

    def optim_context(self, model):
        return autocast(device_type='cpu', dtype=torch.bfloat16)


def test_mixed_precision_trains_the_pruners():
    model = Segmentor()
    attached(model)
    before = model.backbone.pruners['0'].queries.detach().clone()
    log = step(model, CpuAmp(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert log['loss'].isfinite() and not torch.equal(model.backbone.pruners['0'].queries, before)


# --- a whole training -----------------------------------------------------------------------------------------


@HOOKS.register_module()
class ReadProgress(Hook):
    priority = 'LOWEST'

    def __init__(self, backbone='backbone'):
        self.seen, self.backbone = [], attrgetter(backbone)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((runner.iter, self.backbone(runner.model).pruning_progress))


def train(
    tmp_path, by_epoch, hooks=(), ramp=0.5, resume=False, model=None, iters=8, hook=None, reads='backbone', **settings
):
    """8 iterations, as 2 epochs of 4 or as they are."""
    torch.manual_seed(0)
    data = [dict(inputs=torch.randn(3, 24, 24), data_samples=det_sample([i % 3])) for i in range(8)]
    length = dict(max_epochs=iters // 4) if by_epoch else dict(max_iters=iters)
    reader = ReadProgress(reads)
    runner = Runner(
        model or Segmentor(),
        str(tmp_path),
        train_cfg=dict(by_epoch=by_epoch, **length),
        train_dataloader=dict(
            dataset=data,
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=False),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4),
            **settings.pop('logs', {}),
        ),
        custom_hooks=[*([] if ramp is None else [dict(type='CroprHook', ramp=ramp, **(hook or {}))]), reader, *hooks],
        resume=resume,
        log_level=settings.pop('log_level', 'ERROR'),
        experiment_name=str(tmp_path).replace('/', '-'),  # runs of one second and name would share a message hub
        **settings,
    )
    runner.train()
    return runner, [progress for _, progress in reader.seen]


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_curriculum_follows_the_iteration(tmp_path, by_epoch):
    runner, progress = train(tmp_path, by_epoch)
    assert progress == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert runner.model.backbone.pruning_progress == 1.0 and not runner.model._forward_hooks


@pytest.mark.parametrize('by_epoch, half', [(True, 'epoch_1.pth'), (False, 'iter_4.pth')])
def test_a_resumed_run_ends_where_one_in_one_piece_ends(tmp_path, by_epoch, half):
    whole, _ = train(tmp_path / 'whole', by_epoch, ramp=1.0)
    checkpoint = str(tmp_path / 'whole' / half)
    again, progress = train(tmp_path / 'again', by_epoch, ramp=1.0, resume=True, load_from=checkpoint)
    assert progress == [0.5, 0.625, 0.75, 0.875]
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    for name in ('progress', 'keep_ratio'):  # the log continues, too
        ours, theirs = (run.message_hub.get_scalar(f'train/cropr.{name}').data[0].tolist() for run in (again, whole))
        assert ours == theirs and len(ours) == 8


def test_validation_in_between_prunes_at_the_full_rate(tmp_path):
    class Evaluate(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.model.eval()
            with torch.no_grad():
                self.counts.append(runner.model.backbone.counts((6, 6)))
                runner.model(data_batch['inputs'], data_batch['data_samples'], mode='predict')
            runner.model.train()

    evaluate = Evaluate()
    evaluate.counts = []
    train(tmp_path, by_epoch=False, hooks=[evaluate])
    assert all(counts == evaluate.counts[-1] for counts in evaluate.counts)
    assert sum(evaluate.counts[0].values()) > 0


def test_the_moving_average_holds_the_pruners(tmp_path):
    runner, _ = train(tmp_path, by_epoch=False, hooks=[EMAHook(momentum=0.5)])
    ema = next(h for h in runner.hooks if isinstance(h, EMAHook)).ema_model.module
    queries, averaged = (m.backbone.pruners['0'].queries for m in (runner.model, ema))
    assert not torch.equal(queries, averaged) and not ema._forward_hooks


def test_a_training_without_the_hook_stops(tmp_path):
    with pytest.raises(RuntimeError, match='CroprHook'):
        train(tmp_path, by_epoch=False, ramp=None)


def test_every_pruner_learns(tmp_path):
    model = Segmentor()
    before = [p.queries.detach().clone() for p in model.backbone.pruners.values()]
    train(tmp_path, by_epoch=False, model=model)
    assert not any(torch.equal(p.queries, b) for p, b in zip(model.backbone.pruners.values(), before))


def test_by_epoch_the_rate_stays_within_an_epoch(tmp_path):
    _, progress = train(tmp_path, by_epoch=True, ramp=1.0, hook=dict(by_epoch=True))
    assert progress == [0] * 4 + [0.5] * 4


def test_the_log_has_the_plan_the_progress_and_the_current_keep_ratio(tmp_path):
    logger = dict(logger=dict(type='LoggerHook', interval=1))
    runner, progress = train(tmp_path, by_epoch=False, ramp=0.75, log_level='INFO', logs=logger)
    counts = [runner.model.backbone.schedule.counts((6, 6), 1, done) for done in progress]
    expected = [1 - sum(count) / 36 for count in counts]
    assert expected[0] == 1 and 0 < expected[-1] < 0.6 and sorted(expected, reverse=True) == expected
    logged = {name: runner.message_hub.get_scalar(f'train/cropr.{name}').data[0] for name in ('progress', 'keep_ratio')}
    assert logged['progress'].tolist() == progress
    assert logged['keep_ratio'].tolist() == pytest.approx(expected)
    # What a reader of the file sees.
    log = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    kept = [36 - sum(counts[-1][: i + 1]) for i in range(3)]
    plan = ', '.join(f'{count} after block {block}' for block, count in enumerate(kept))
    assert f'CroprHook: backbone: of 36 patch tokens (6×6), CroprPruner keeps {plan}, once the final' in log
    lines = [line for line in log.splitlines() if '(train)' in line and 'cropr.progress' in line]
    assert [f'cropr.keep_ratio: {ratio:.4f}' in line for line, ratio in zip(lines, expected)] == [True] * 8


def test_a_dense_model_has_no_progress(tmp_path):
    runner, _ = train(tmp_path, by_epoch=False, model=Segmentor(None))
    assert not [name for name in runner.message_hub.log_scalars if 'cropr' in name]


def test_a_training_whose_pruners_were_counted_resumes(tmp_path):
    whole, _ = train(tmp_path / 'whole', by_epoch=False)
    checkpoint = load_file(str(tmp_path / 'whole' / 'iter_4.pth'))
    checkpoint['state_dict']['backbone.pruners.blocks'] = torch.tensor([0, 1, 2])  # as the first versions wrote it
    torch.save(checkpoint, tmp_path / 'counted.pth')
    again, _ = train(tmp_path / 'again', by_epoch=False, resume=True, load_from=str(tmp_path / 'counted.pth'))
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


@pytest.mark.parametrize('resume', [False, True])
def test_another_image_size_is_loaded_resized_and_not_resumed(tmp_path, resume):
    train(tmp_path, by_epoch=False, iters=4)
    larger = Segmentor(backbone=small_vit(pruning=PRUNING, img_size=48))
    start = dict(model=larger, resume=resume, load_from=str(tmp_path / 'iter_4.pth'), by_epoch=False)
    if resume:
        words = r'resume: the checkpoint was trained with another img_size: backbone.pos_embed \(1, 37, 16\), 145'
        with pytest.raises(ValueError, match=words):
            train(tmp_path / 'other', **start)
        return
    train(tmp_path / 'other', **start)
    assert larger.backbone.pos_embed.shape[1] == 145


def test_by_epoch_needs_epochs(tmp_path):
    with pytest.raises(ValueError, match=r'CroprHook.by_epoch=True, but train_cfg.type is IterBasedTrainLoop'):
        train(tmp_path, by_epoch=False, hook=dict(by_epoch=True))


def test_the_pruners_learn_before_pruning_begins(tmp_path):
    _, progress = train(tmp_path, by_epoch=False, ramp=0.25, hook=dict(begin=0.5))
    assert progress == [0] * 5 + [0.5, 1, 1]


# --- retrofit -------------------------------------------------------------------------------------------------


class WithBatchNorm(Segmentor):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.head = nn.Sequential(nn.BatchNorm2d(16), nn.Dropout(0.5), nn.Conv2d(16, 3, 1))


def test_retrofit_trains_the_pruners_and_nothing_else(tmp_path):
    model = WithBatchNorm(backbone=small_vit(pruning=PRUNING, drop_path_rate=0.5))
    before = copy.deepcopy(model.state_dict())
    train(tmp_path, by_epoch=True, model=model, hook=dict(retrofit=True), load_from=saved(model, tmp_path))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    weights = {name for name, _ in model.named_parameters() if '.pruners.' in name}
    assert changed == weights
    assert not any('.pruners.' not in name and p.requires_grad for name, p in model.named_parameters())


def test_retrofit_prunes_and_logs_the_main_loss_all_the_same(tmp_path):
    model = WithBatchNorm()
    hook = CroprHook(ramp=0, retrofit=True)

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            vit = runner.model.backbone
            counts = vit.counts((6, 6)).values()
            modes = (runner.model.head[0].training, vit.blocks.training, vit.training)
            self.seen = (sum(counts), modes)

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.losses = outputs

    look = Look()
    look.priority = 'LOWEST'
    train(tmp_path, by_epoch=False, model=model, ramp=None, hooks=[hook, look], load_from=saved(model, tmp_path))
    assert look.seen == (21, (False, False, True)) and {'loss_main', 'cropr.loss_aux'} <= set(look.losses)


def test_retrofit_evaluates_what_is_random_or_keeps_statistics_and_no_head_as_such():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.attention = nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2, dropout=0.5)
            self.layers = nn.Sequential(nn.Dropout2d(0.5), DropPath(0.5), nn.Conv2d(4, 4, 1))

    backbone = small_vit(pruning=dict(pruner=cropr(), rate=8), drop_path_rate=0.5)
    model = nn.ModuleDict(dict(backbone=backbone, head=Head())).eval()
    evaluate_all_but_pruners(model)
    assert backbone.training and all(m.training for m in backbone.pruners.modules())
    assert not any(m.training for m in backbone.blocks.modules())
    head = model['head']
    assert head.training and head.layers.training and head.layers[2].training
    assert not any(m.training for m in (head.norm, head.attention, head.layers[0], head.layers[1]))


def test_retrofit_with_nothing_to_train_is_refused(tmp_path):
    model = Segmentor(dict(pruner=dict(type='RandomPruner'), rate=8))
    with pytest.raises(ValueError, match=r'CroprHook.retrofit=True, but no pruner has parameters'):
        train(tmp_path, by_epoch=False, model=model, hook=dict(retrofit=True), load_from=saved(model, tmp_path))


def test_retrofit_of_random_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'CroprHook.retrofit=True, but no checkpoint gives the model its weights'):
        train(tmp_path / 'scratch', by_epoch=False, hook=dict(retrofit=True))
    with pytest.raises(ValueError, match=r'no checkpoint gives the model its weights'):  # nothing to resume, either
        train(tmp_path / 'resumed', by_epoch=False, hook=dict(retrofit=True), resume=True)


def test_retrofit_may_start_from_the_weights_of_init_cfg(tmp_path):
    torch.save(small_vit().state_dict(), tmp_path / 'w.pth')
    settings = dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth'))
    model = Segmentor(backbone=small_vit(pruning=PRUNING, init_cfg=settings))
    runner, _ = train(tmp_path, by_epoch=False, model=model, hook=dict(retrofit=True), log_level='INFO')
    assert torch.equal(model.backbone.pos_embed, torch.load(tmp_path / 'w.pth')['pos_embed'])
    log = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    assert 'what else the model has stays as it was built, and frozen (head.weight, head.bias)' in log


def test_retrofit_says_how_much_trains(tmp_path):
    model = Segmentor()
    start = dict(load_from=saved(model, tmp_path), log_level='INFO')
    runner, _ = train(tmp_path, by_epoch=False, model=model, hook=dict(retrofit=True), **start)
    pruners = sum(p.numel() for p in model.backbone.pruners.parameters())
    others = sum(p.numel() for p in model.parameters()) - pruners
    log = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    assert f'CroprHook: retrofit: {pruners:,} parameters train, {others:,} are frozen' in log


def test_under_ddp_retrofit_wraps_the_frozen_model(tmp_path, monkeypatch):
    """Without find_unused_parameters, of a wrapper that was made before anything was frozen."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setenv('LOCAL_RANK', '0')
    seen = {}

    class Look(Hook):
        priority = 'LOWEST'

        def before_run(self, runner):  # mmengine does that as it builds the runner, from a launcher's environment
            runner._distributed, runner.cfg.model_wrapper_cfg = True, dict(wrapper)
            runner.model = runner.wrap_model(dict(wrapper), runner.model)
            seen['before'] = weakref.ref(runner.model)

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen['tensors'] = runner.model._get_ddp_logging_data()['num_parameter_tensors']

    model = Segmentor()
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    try:
        runner, _ = train(
            tmp_path,
            by_epoch=False,
            model=model,
            hook=dict(retrofit=True),
            hooks=[Look()],
            reads='module.backbone',
            load_from=saved(Segmentor(None), tmp_path),
        )
        assert isinstance(runner.model, MMDistributedDataParallel) and runner.model.module is model
    finally:
        torch.distributed.destroy_process_group()
    assert seen['before']() is None
    assert seen['tensors'] == len(list(model.backbone.pruners.parameters()))


def test_retrofit_under_a_wrapper_that_cannot_is_refused():
    runner = SimpleNamespace(model=MMFullyShardedDataParallel.__new__(MMFullyShardedDataParallel))
    with pytest.raises(ValueError, match=r'retrofit=True with MMFullyShardedDataParallel; one process or DDP'):
        wrap_again(runner)
    runner.model = model = Segmentor()
    wrap_again(runner)
    assert runner.model is model


def saved(model, tmp_path, rename=lambda name: name):
    torch.save(dict(state_dict={rename(k): v for k, v in model.state_dict().items()}), tmp_path / 'dense.pth')
    return str(tmp_path / 'dense.pth')


def test_retrofit_starts_from_a_dense_checkpoint(tmp_path):
    dense, model = Segmentor(None), Segmentor()
    train(tmp_path, by_epoch=False, model=model, hook=dict(retrofit=True), load_from=saved(dense, tmp_path))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda name: name.replace('blocks', 'layers'), r'backbone.blocks.0.norm1.weight is missing'),
        (lambda name: name if name != 'head.weight' else 'other', r'head.weight is missing'),
    ],
)
def test_retrofit_refuses_a_checkpoint_that_leaves_weights_random(tmp_path, change, words):
    checkpoint = saved(Segmentor(None), tmp_path, change)
    with pytest.raises(ValueError, match=rf'CroprHook.retrofit=True: load_from does not fit .*{words}'):
        train(tmp_path, by_epoch=False, hook=dict(retrofit=True), load_from=checkpoint)
