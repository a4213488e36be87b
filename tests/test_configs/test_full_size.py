"""The full-size configs: what each builds, what it keeps and, shrunken, that it learns and predicts."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from parity import import_mmpretrain, import_timm

from cropr_mm import CroprHook
from cropr_mm.benchmark.flops import pruned_ratio, tokens_per_block
from cropr_mm.cli.inputs import check_data, check_weights
from cropr_mm.cli.model import build_model
from cropr_mm.models.archs import resolve_arch
from cropr_mm.sample_data import CLASSES, THINGS, write_sample_data
from cropr_mm.utils.libraries import register_library

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('ade20k', 'coco', 'imagenet')
FILES = {file.stem: file for folder in FOLDERS for file in sorted(ROOT.glob(f'configs/{folder}/*.py'))}
SIDE = 64
DATA = dict(
    mmseg=('data/ade', '.zip'), mmdet=('data/coco', 'train2017.zip'), mmpretrain=('data/imagenet', 'ILSVRC2012')
)
CLASSES_OF = dict(mmseg=150, mmdet=80, mmpretrain=1000)
ORIGINALS = {
    'eva02-l': 'eva02_large_patch14_224',
    'vit-b': 'vit_base_patch16_224',
    'vit-l': 'vit_large_patch16_224',
    'dinov2-b': 'vit_base_patch14_dinov2',
    'dinov2-l': 'vit_large_patch14_dinov2',
}

# What stock heads have by the hundred, and how many of it a test needs.
FEWER = dict(num=8, nms_pre=50, max_per_img=20, num_layers=2, num_queries=20, num_points=128, fc_out_channels=32)

every_config = pytest.mark.parametrize('name', FILES)


def load(name):
    if FILES[name].parent.name == 'imagenet':
        import_mmpretrain()
    else:
        pytest.importorskip('mmdet' if FILES[name].parent.name == 'coco' else 'mmseg')
    if name.startswith('mask2former'):
        pytest.importorskip('mmdet')
    cfg = Config.fromfile(str(FILES[name]))
    register_library(cfg)
    return cfg


@pytest.mark.parametrize('folder', FOLDERS)
def test_mim_and_the_readme_know_every_config(folder):
    names = {name for name, file in FILES.items() if file.parent.name == folder}
    metafile = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())
    collections = {collection['Name'] for collection in metafile['Collections']}
    assert {model['Name'] for model in metafile['Models']} == names
    for model in metafile['Models']:
        assert model['In Collection'] in collections
        assert model['Config'] == f'configs/{folder}/{model["Name"]}.py'
        assert 'Results' not in model  # nobody has trained them
    readme = (ROOT / 'configs' / folder / 'README.md').read_text()
    assert set(re.findall(r'[\w-]+_(?:ade20k|coco|in1k)[\w-]*(?=\.py)', readme)) == names
    assert f'configs/{folder}/metafile.yml' in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']


@every_config
def test_what_is_missing_is_named_with_where_it_comes_from(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load(name)
    data, file = DATA[cfg.default_scope]
    words = rf'^train_dataloader\.dataset\.\w+: {tmp_path}/{data}.* does not exist\. Download .*{file}.* in {data}'
    with pytest.raises(FileNotFoundError, match=words):
        check_data(cfg, ['train_dataloader'])
    checkpoint = Path(cfg.model.backbone.init_cfg.checkpoint)
    assert checkpoint.parent == Path('checkpoints')
    words = rf'^model\.backbone\.init_cfg\.checkpoint: {tmp_path}/{checkpoint} does not exist\. Download .*'
    with pytest.raises(FileNotFoundError, match=f'{words}{checkpoint.name}.* to the folder checkpoints$'):
        check_weights(cfg)
    readme = (FILES[name].parent / 'README.md').read_text()
    assert f'`{checkpoint.name}`' in readme


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def expected_of_pruners(backbone, classes):
    """Queries and heads of the pruners, from the method's description."""
    if not parameters(backbone.pruners):
        return 0
    dim, patches = backbone.embed_dims, math.prod(backbone.grid)
    norm, mlp = 2 * dim, 2 * 4 * dim * dim + 5 * dim
    kind = type(next(iter(backbone.pruners.values())).aux_head).__name__
    each = {
        'TokenClassAuxHead': dim + norm + (dim + 1) * (classes + 1),  # one query, background as a class
        'PatchSegAuxHead': patches * dim + norm + mlp + norm + (dim + 1) * classes,
        'MultiLabelAuxHead': dim + norm + mlp + norm + (dim + 1) * classes,
    }
    each['ClsAuxHead'] = each['MultiLabelAuxHead']
    return len(backbone.pruners) * each[kind]


@every_config
def test_builds_with_as_many_parameters_as_the_original(name):
    timm = import_timm()
    cfg = load(name)
    settings = cfg.model.backbone
    arch = resolve_arch(settings.arch)
    (original,) = [entry for key, entry in ORIGINALS.items() if f'-{key}' in name]
    # Segmenter's head reads the values of a tensor as it is built, so it cannot be built without memory.
    head = cfg.model.pop('decode_head') if name.startswith('segmenter') else None
    with torch.device('meta'):
        model = MODELS.build(settings) if head else build_model(cfg)
        theirs = timm.create_model(
            original, num_classes=0, img_size=settings.img_size, patch_size=settings.get('patch_size', 16)
        )
    backbone = model if head else model.backbone
    expected = parameters(theirs)
    expected -= 0 if arch.class_token else 2 * arch.embed_dim  # the token and its position
    expected -= 0 if settings.get('final_norm', True) else 2 * arch.embed_dim
    assert parameters(backbone) - parameters(backbone.pruners) == expected
    assert parameters(backbone.pruners) == expected_of_pruners(backbone, CLASSES_OF[cfg.default_scope])
    if head:
        assert head.num_classes == 150 and head.embed_dims == head.in_channels == arch.embed_dim


@every_config
def test_keeps_as_many_tokens_as_planned(name):
    settings = load(name).model.backbone
    size = (settings.img_size,) * 2 if isinstance(settings.img_size, int) else settings.img_size
    with torch.device('meta'):
        backbone = MODELS.build(settings)
    tokens = tokens_per_block(backbone, *size)
    rate = re.search(r'-r(\d+)-', name)
    if '-5stages-' in name:
        # Linear layers of all blocks, and the patch embedding, as the paper counts its 1273 G.
        dim, hidden = backbone.embed_dims, int(backbone.embed_dims * 8 / 3)
        count = sum(tokens) * (4 * dim**2 + 3 * dim * hidden) + tokens[0] * 16**2 * 3 * dim
        assert count / 1e9 == pytest.approx(1273, abs=1)
        assert backbone.schedule.blocks == (5, 8, 11, 14, 20) and set(backbone.schedule.blocks) < set(
            backbone.global_blocks
        )
        assert pruned_ratio(backbone, *size) == pytest.approx(0.97, abs=0.001)
        return
    if '-oneshot-' in name:
        assert tokens == [1025] * 3 + [208] * 21  # (0.2 · 1024 + 1) in eights
        return
    if rate is None:
        assert '_dense-' in name and set(tokens) == {tokens[0]}
        return
    assert backbone.schedule.rate == int(rate[1])
    assert backbone.schedule.blocks == tuple(range(backbone.depth - 2)) and backbone.fusion
    if 'eva02-l' in name and size in [(512, 512), (448, 448)]:  # arXiv 2412.00965
        assert tokens == [1025, *range(984, 143, -40), 1025]
    elif 'eva02-l' in name:
        assert tokens == [9216, *range(8808, 239, -408), 9216]
        assert pruned_ratio(backbone, *size) == pytest.approx(0.97, abs=0.005)
    elif 'in1k' in name:
        assert tokens == [197, *range(192, 23, -8), 197]
    else:
        assert pruned_ratio(backbone, *size) == pytest.approx(0.86, abs=0.01)


# --- shrunken -------------------------------------------------------------------------------------------------


def shrink(cfg):
    """Four channels per head, windows of 2 × 2 patches, images of ``SIDE`` pixels, and ``FEWER`` of what heads have."""
    backbone = cfg.model.backbone
    arch = resolve_arch(backbone.arch)
    channels = 4 * arch.num_heads
    narrow(cfg.model, arch.embed_dim, channels)
    backbone.arch = dict(dataclasses.asdict(arch), embed_dim=channels)
    backbone.init_cfg = None
    if 'window_size' in backbone:
        backbone.window_size = 2
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor['size'] = (SIDE, SIDE)
        if 'size' in cfg.model.data_preprocessor.get('test_cfg', {}):
            cfg.model.data_preprocessor.test_cfg.size = (SIDE, SIDE)
    elif cfg.default_scope == 'mmdet':
        cfg.model.data_preprocessor.pad_size_divisor = 32
    for key in ('dtype', 'loss_scale'):  # mixed precision needs an accelerator
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


def narrow(settings, old, new):
    """Replace the backbone's channels where necks and heads state them, and the numbers of ``FEWER``."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in list(entries):
        if isinstance(value, (dict, list)):
            narrow(value, old, new)
        elif value == old and (isinstance(key, int) or key in ('in_channels', 'channels', 'embed_dim', 'embed_dims')):
            settings[key] = new
        elif key in FEWER and type(value) is int:
            settings[key] = min(value, FEWER[key])


def batch(library):
    if library == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [[3, SIDE, SIDE]] * 2, num_items=[2, 3], num_classes=80, with_mask=True)
    if library == 'mmpretrain':
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(label) for label in (3, 999)]
        return dict(inputs=list(torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)), data_samples=samples)
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        samples.append(SegDataSample(metainfo=dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))))
        samples[-1].gt_sem_seg = PixelData(data=torch.randint(150, (1, SIDE, SIDE)))
    return dict(inputs=list(torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)), data_samples=samples)


@every_config
def test_a_shrunken_version_learns_and_predicts(name):
    cfg = shrink(load(name))
    model = build_model(cfg)
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

    model.train()
    CroprHook().attach(model)
    losses = model(**model.data_preprocessor(batch(cfg.default_scope), True), mode='loss')
    total, log = model.parse_losses(losses)
    assert all(torch.isfinite(value).all() for value in log.values()), log
    assert ('cropr.loss_aux' in log) == ('_cropr-' in name or '_nonsalient-' in name)
    total.backward()
    first = model.backbone.patch_embed.proj.weight
    before = first.detach().clone()
    for part in (model.backbone, model.neck):
        assert all(parameter.grad is not None for parameter in part.parameters())
    optim_wrapper.step()
    assert not torch.equal(first, before)

    model.eval()
    with torch.no_grad():
        results = model.test_step(batch(cfg.default_scope))
    assert len(results) == 2
    if cfg.default_scope == 'mmseg':
        logits = results[0].seg_logits.data
        assert logits.shape == (150, SIDE, SIDE) and torch.isfinite(logits).all()
    elif cfg.default_scope == 'mmpretrain':
        assert all(result.pred_score.shape == (1000,) and torch.isfinite(result.pred_score).all() for result in results)
    else:
        assert torch.isfinite(results[0].pred_instances.bboxes).all()


@pytest.mark.parametrize('size, expected', [((150, 200), (384, 512)), ((120, 90), (512, 384))])
def test_linear_heads_read_images_as_the_authors_do(size, expected):
    """The long edge at 512, padded to 512², and a map of the image's own size."""
    cfg = load('fcn_dense-eva02-l_8xb1-64e_ade20k-512x512')
    scale = next(step for step in cfg.val_dataloader.dataset.pipeline if step.type == 'Resize')
    from mmcv.transforms import Resize

    results = Resize(scale.scale, keep_ratio=scale.keep_ratio)(dict(img=np.zeros((*size, 3), np.uint8)))
    assert results['img'].shape[:2] == expected
    seen = dict(cfg.model.backbone, arch='vit-tiny', init_cfg=None, drop_path_rate=0.0)
    cfg.model.update(backbone=seen)
    narrow(cfg.model, 1024, 192)
    model = build_model(cfg).eval()
    shapes = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=expected, ori_shape=size))
    image = torch.randint(256, (3, *expected), dtype=torch.uint8)
    (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    assert shapes == [(1, 3, 512, 512)] and result.pred_sem_seg.data.shape[1:] == size


@pytest.fixture(scope='module')
def sample_data(tmp_path_factory):
    return write_sample_data(tmp_path_factory.mktemp('data') / 'sample', train=4, val=2, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'fcn_cropr-r40-eva02-l_8xb1-64e_ade20k-512x512',
        'cascade-mask-rcnn_cropr-r408-eva02-l_32xb2-40k_coco-1536x1536',
    ],
)
def test_the_whole_of_a_shrunken_training_runs(name, sample_data, tmp_path):
    """Data pipelines, schedules, hooks and evaluation, on the sample data in place of the real."""
    cfg = shrink(load(name))
    cfg.work_dir = str(tmp_path)
    segmentation = cfg.default_scope == 'mmseg'
    for split, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        dataset = loader.dataset
        dataset.data_root = str(sample_data)
        for step in dataset.pipeline:
            step.update({key: (SIDE, SIDE) for key in ('scale', 'crop_size') if key in step})
        if segmentation:
            dataset.update(type='BaseSegDataset', metainfo=dict(classes=CLASSES), reduce_zero_label=True)
        else:
            dataset.metainfo = dict(classes=THINGS)
            dataset.update(ann_file=f'annotations/instances_{folder}.json', data_prefix=dict(img=f'images/{folder}/'))
            if split == 'val':
                cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f'{sample_data}/{dataset.ann_file}'
    if segmentation:
        cfg.train_cfg.update(max_epochs=2, val_interval=1)
        cfg.param_scheduler.end = 2
        cfg.default_hooks.checkpoint.interval = 1
    else:
        for head in (*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
            head.num_classes = len(THINGS)
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # there must be something to evaluate
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.interval = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert list(tmp_path.glob('epoch_2.pth' if segmentation else 'iter_2.pth'))
    scores = runner.message_hub.log_scalars
    assert 'train/cropr.loss_aux' in scores
    assert ('val/mIoU' if segmentation else 'val/coco/segm_mAP') in scores
