"""What TokenVisualizationHook writes, read back from the files of the real TensorBoard backend."""

import copy
import io

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from torch import nn
from two_processes import train_in_two_processes

from cropr_mm import TokenVisualizationHook
from cropr_mm.analysis.routing import KEPT, predict_with_routing
from cropr_mm.models.cropr_vit import find_backbone

from ..test_tools.conftest import CONFIGS, forget

Image = pytest.importorskip('PIL.Image')
accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')

BACKENDS = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
MMSEG, MMDET = 'fcn_cropr-vit_sample', 'mask-rcnn_cropr-vit_sample'


class States(Hook):
    """What a training gives besides its log: weights, the states of the generators, predictions' metrics."""

    priority = 'LOWEST'

    def __init__(self):
        self.random, self.modes, self.metrics = [], [], []
        self.weights, self.hooks = {}, []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.random.append(torch.get_rng_state())
        self.modes.append([module.training for module in runner.model.modules()])

    def after_train(self, runner):
        vit = find_backbone(runner.model)
        self.weights = runner.model.state_dict()
        self.hooks = [len(vit.prune_listeners), len(vit._forward_pre_hooks), len(runner.model._forward_pre_hooks)]

    def after_val_epoch(self, runner, metrics=None):
        self.metrics.append(dict(metrics))


def config(name, hook, iterations=2, **settings):
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    cfg.merge_from_dict(
        {
            'model.backbone.init_cfg': None,
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations,
            'visualizer.vis_backends': BACKENDS,
            'work_dir': 'run',
            'log_level': 'WARNING',
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.interval': 100,
            **{
                f'{loader}_dataloader.{key}': value
                for loader in ('train', 'val', 'test')
                for key, value in dict(num_workers=0, persistent_workers=False, batch_size=2).items()
            },
            **settings,
        }
    )
    if hook is not None:
        cfg.custom_hooks = [*cfg.get('custom_hooks', ()), dict(type='TokenVisualizationHook', **hook)]
    return cfg


def build(cfg):
    forget(ManagerMixin)
    return Runner.from_cfg(cfg)


def events(folder):
    (place,) = {file.parent for file in folder.rglob('events.out.tfevents.*')}
    read = accumulator.EventAccumulator(str(place), dict(images=0, scalars=0))
    return read.Reload()


def scalars(read, begin):
    found = {}
    for tag in read.Tags()['scalars']:
        if tag.startswith(begin):
            found[tag[len(begin) :]] = [(event.step, event.value) for event in read.Scalars(tag)]
    return found


def pixels(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert('RGB'))


def expected(runner, batches):
    """Tokens left after each block and shares of each class kept, image by image and pixel by pixel."""
    model = runner.model.eval()
    backbone = find_backbone(model)
    blocks, patch = list(backbone.schedule.blocks), backbone.patch_size
    classes = runner.val_dataloader.dataset.metainfo['classes']
    tokens = {block: [] for block in blocks}
    kept, total = dict.fromkeys((*classes, 'background'), 0.0), dict.fromkeys((*classes, 'background'), 0.0)
    for i, batch in enumerate(runner.val_dataloader):
        if i not in batches:
            continue
        routed = predict_with_routing(model, copy.deepcopy(batch))
        for sample, exits in zip(batch['data_samples'], routed.exits[0]):
            for block in blocks:
                tokens[block].append(int(((exits == KEPT) | (exits > block)).sum()))
            height, width = sample.img_shape[:2]
            for y in range(height):
                for x in range(width):
                    names = pixel_classes(sample, y, x, classes)
                    for name in names:
                        total[name] += 1
                        kept[name] += float(exits[y // patch, x // patch] == KEPT)
    shares = {name: kept[name] / total[name] for name in total if total[name]}
    return {block: np.mean(values) for block, values in tokens.items()}, shares


def pixel_classes(sample, y, x, classes):
    if 'gt_sem_seg' in sample:
        label = int(sample.gt_sem_seg.data[0, y, x])
        return [classes[label]] if label < len(classes) else []
    masks, labels = sample.gt_instances.masks.masks, sample.gt_instances.labels
    return {classes[int(label)] for mask, label in zip(masks, labels) if mask[y, x]} or {'background'}


@pytest.mark.parametrize('library', ['mmseg', 'mmdet'])
def test_pictures_tokens_and_class_shares_are_in_the_event_file(library, data_folder):
    pytest.importorskip(library)
    runner = build(config(dict(mmseg=MMSEG, mmdet=MMDET)[library], dict(interval=2, pixels=100)))
    runner.train()
    read = events(data_folder / 'run')
    tokens, shares = expected(runner, batches=(0, 2))  # six images, two at a time
    written = scalars(read, 'val/cropr.tokens.')
    assert written == {str(block): [(2, pytest.approx(count))] for block, count in tokens.items()}
    assert list(tokens.values()) == sorted(tokens.values(), reverse=True) and len(tokens) == 6
    written = scalars(read, 'val/cropr.kept.')
    assert written == {name: [(2, pytest.approx(share, abs=1e-6))] for name, share in shares.items()}
    assert len(shares) > 3 and ('background' in shares) is (library == 'mmdet')

    names = [f'val_tokens_{name}.png' for name in drawn(runner, (0, 2))]
    assert sorted(read.Tags()['images']) == sorted(names) and len(names) == 4
    for name in names:
        (event,) = read.Images(name)
        assert event.step == 2
        local = Image.open(next((data_folder / 'run').rglob(f'{name}_2.png'))).convert('RGB')
        assert pixels(event).shape[1] == 400 and np.array_equal(pixels(event), np.asarray(local))
    # the losses of the scorers are there once, by CroprHook
    aux = [tag for tag in read.Tags()['scalars'] if 'aux' in tag]
    assert sorted(aux) == [*(f'cropr.aux.{block}' for block in range(6)), 'cropr.loss_aux']

    runner.test()  # the same images and weights
    read = events(data_folder / 'run')
    assert scalars(read, 'test/cropr.') == scalars(read, 'val/cropr.')
    for name in names:
        assert np.array_equal(*(pixels(read.Images(tag)[0]) for tag in (name, name.replace('val', 'test'))))


def drawn(runner, batches):
    every = list(runner.val_dataloader)
    return [sample.img_path.split('/')[-1].split('.')[0] for i in batches for sample in every[i]['data_samples']]


def test_it_changes_nothing_of_the_training(data_folder):
    pytest.importorskip('mmseg')
    seen = []
    for hook in (None, dict(interval=1, pixels=100)):
        runner = build(config('fcn_random-vit_sample', hook, iterations=4, **{'train_cfg.val_interval': 2}))
        states = States()
        runner.register_hook(states)
        runner.train()
        seen.append(states)
    without, looked = seen
    assert without.hooks == looked.hooks == [0, 0, 0]
    assert without.modes == looked.modes and without.metrics == looked.metrics and len(looked.metrics) == 2
    assert all(torch.equal(*pair) for pair in zip(without.random, looked.random)) and len(looked.random) == 6
    assert all(torch.equal(value, looked.weights[key]) for key, value in without.weights.items())


def test_sliding_windows_averaged_weights_and_epochs(data_folder):
    """Windows count one by one; with an EMAHook it is the averaged weights that prune; the step is the iteration."""
    pytest.importorskip('mmseg')
    slide = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    cfg = config(MMSEG, dict(interval=3, pixels=100), **{'model.test_cfg': slide})
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.batch_size = 12  # of 24 images
    cfg.param_scheduler, cfg.log_processor = [], dict(by_epoch=True)
    cfg.default_hooks.checkpoint.by_epoch = cfg.default_hooks.logger.log_metric_by_epoch = True
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    runner = build(cfg)
    averaged = {}

    @HOOKS.register_module(force=True)
    class Keep(Hook):
        priority = 'LOWEST'

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            averaged.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    runner.register_hook(Keep())
    runner.train()
    weights = runner.model.state_dict()
    assert any(not torch.equal(value, averaged[key]) for key, value in weights.items())
    runner.model.load_state_dict(averaged)

    backbone, classes = find_backbone(runner.model.eval()), runner.val_dataloader.dataset.metainfo['classes']
    batch = next(iter(runner.val_dataloader))
    data = runner.model.data_preprocessor(batch)
    kept, total, left = torch.zeros(9), torch.zeros(9), []
    for top in (0, 32):
        for across in (0, 32):
            with torch.no_grad(), Exits(backbone) as exits:
                backbone(data['inputs'][..., top : top + 64, across : across + 64])
            left.append(exits.left)
            for i, sample in enumerate(batch['data_samples']):
                label = sample.gt_sem_seg.data[0, top : top + 64, across : across + 64]
                mask = torch.zeros(64, dtype=torch.bool)
                mask[exits.kept[i]] = True
                mask = mask.view(8, 8).repeat_interleave(8, 0).repeat_interleave(8, 1)
                for name in range(9):
                    total[name] += (label == name).sum()
                    kept[name] += (mask & (label == name)).sum()
    read = events(data_folder / 'run')
    shares = {classes[i]: [(2, pytest.approx(float(kept[i] / total[i]), abs=1e-6))] for i in range(9) if total[i]}
    assert scalars(read, 'val/cropr.kept.') == shares
    assert left[0] == left[3]
    assert scalars(read, 'val/cropr.tokens.') == {str(b): [(2, count)] for b, count in left[0].items()}
    image = pixels(read.Images(f'val_tokens_{drawn(runner, [0])[0]}.png')[0])
    assert len({tuple(colour) for colour in image[30:120, 100:200].reshape(-1, 3)}) > 10


class Exits:
    """Positions kept by the last pruner, and how many each left, as a listener of the backbone hears it."""

    def __init__(self, backbone):
        self.backbone, self.left, self.kept = backbone, {}, None

    def __enter__(self):
        self.backbone.prune_listeners.append(self)
        return self

    def __exit__(self, *_):
        self.backbone.prune_listeners.remove(self)

    def __call__(self, block, kept, pruned):
        self.left[block], self.kept = kept.shape[1], kept


def test_without_labels_and_without_pruners(data_folder, monkeypatch):
    pytest.importorskip('mmdet')
    cfg = config('mask-rcnn_dense-vit_sample', dict(pixels=100))
    cfg.val_dataloader.dataset.pipeline = [
        step for step in cfg.val_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations'
    ]
    cfg.custom_hooks = cfg.custom_hooks[-1:]  # a dense model needs no CroprHook
    runner = build(cfg)
    runner.val()
    read = events(data_folder / 'run')
    assert not scalars(read, 'val/cropr.')
    (first, _) = (read.Images(tag)[0] for tag in sorted(read.Tags()['images']))
    assert pixels(first).shape[1] == 300  # image, tokens, prediction

    pruned = config(MMDET, dict(draw=False))
    pruned.val_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    pruned.work_dir = 'numbers'
    build(pruned).val()
    read = events(data_folder / 'numbers')
    assert len(scalars(read, 'val/cropr.tokens.')) == 6 and not scalars(read, 'val/cropr.kept.')
    assert not read.Tags()['images']


def test_test_time_augmentation_is_left_alone(data_folder, run_tool, capfd):
    pytest.importorskip('mmseg')
    cfg = config(MMSEG, dict(interval=1))
    cfg.dump('config.py')
    torch.save(dict(state_dict=build(cfg).model.state_dict()), 'model.pth')
    run_tool('test', 'config.py', 'model.pth', '--work-dir', 'tested', '--tta')
    assert capfd.readouterr().out.count('did not see each image once (test-time augmentation?)') == 1
    assert not events(data_folder / 'tested').Tags()['images']


@pytest.mark.slow
def test_of_two_processes_the_main_one_writes(data_folder):
    pytest.importorskip('mmseg')
    config(MMSEG, dict(interval=1, pixels=100)).dump('config.py')
    train_in_two_processes([['config.py', '--work-dir', 'run']], data_folder)
    assert len(list((data_folder / 'run').rglob('events.out.tfevents.*'))) == 1
    read = events(data_folder / 'run')
    assert len(read.Tags()['images']) == 3  # of six
    assert len(scalars(read, 'val/cropr.tokens.')) == 6


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(interval=0), r'TokenVisualizationHook.interval=0; a positive integer is expected'),
        (dict(pixels=10), r'TokenVisualizationHook.pixels=10; an integer of 50 or more is expected'),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenVisualizationHook(**settings)


def test_a_model_without_cropr_vit_is_named():
    runner = type('Runner', (), dict(model=nn.Linear(1, 1)))
    with pytest.raises(ValueError, match=r'TokenVisualizationHook: Linear has no CroprViT; .* take the hook out of c'):
        TokenVisualizationHook().before_run(runner)
