"""Nuclei from the public archive to COCO, and the configs that read them."""

import io
import json
import runpy
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image

from cropr_mm import CroprHook, OracleHook
from cropr_mm.benchmark.flops import tokens_per_block
from cropr_mm.cli.model import build_model

from .conftest import ROOT

TOOL = runpy.run_path(str(ROOT / 'tools' / 'dataset_converters' / 'nuclei.py'))
convert, split_of = TOOL['convert'], TOOL['split_of']
# Two published ids, one of each split, and short ones.
TRAIN = '00071198d059ba7f5914a526d124d28e6d010c92466da21d4a04cd5413362552'
VAL = '02903040e19ddf92f452907644ad3822918f54af41dd85e5a3fe3e1b6d6f9339'
IDS = [TRAIN, VAL, 'b', 'c', 'd', 'e', 'f', 'k']
SAME_START = next(name for name in (f'{TRAIN[:16]}{i}' for i in range(100)) if split_of(name) == 'train')


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def mask(left, top, width, height, size=(60, 80)):
    array = np.zeros(size, np.uint8)
    array[top : top + height, left : left + width] = 255
    return png(array)


def members(front=''):
    """Two nuclei in each image."""
    image = png(np.full((60, 80, 4), (200, 40, 90, 255), np.uint8))
    found = {f'{front}{name}/images/{name}.png': image for name in IDS}
    for name in IDS:
        found[f'{front}{name}/masks/0.png'] = mask(3, 5, 20, 10)
        found[f'{front}{name}/masks/1.png'] = mask(40, 30, 8, 12)
    return found


def archive(path, found):
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in found.items():
            file.writestr(name, content)
    return path


def read(out):
    return {split: json.loads((out / f'instances_{split}.json').read_text()) for split in ('train', 'val')}


def test_zip_and_folder_give_the_same(tmp_path):
    zipped = archive(tmp_path / 'stage1_train.zip', {'__MACOSX/x/masks/._0.png': b'', **members('fixes/stage1_train/')})
    with zipfile.ZipFile(zipped) as file:
        file.extractall(tmp_path / 'unpacked')
    for source, out in ((zipped, tmp_path / 'a'), (tmp_path / 'unpacked', tmp_path / 'b')):
        assert convert(source, out, progress=False).nuclei == 2 * len(IDS)
    data = read(tmp_path / 'a')
    assert data == read(tmp_path / 'b')
    assert sum(len(content['images']) for content in data.values()) == len(IDS)
    for split, content in data.items():
        files = {image['file_name'] for image in content['images']}
        assert files == {f'{name[:16]}.jpg' for name in IDS if split_of(name) == split}
        assert files == {file.name for file in (tmp_path / 'a' / 'images' / split).iterdir()}


def test_split_never_changes():
    assert (split_of(TRAIN), split_of(VAL)) == ('train', 'val')
    assert 0.15 < np.mean([split_of(str(i)) == 'val' for i in range(1000)]) < 0.25


def test_masks_as_pycocotools_reads_them(tmp_path):
    coco = pytest.importorskip('pycocotools.coco')
    convert(archive(tmp_path / 'in.zip', members()), tmp_path / 'out', progress=False)
    data = coco.COCO(str(tmp_path / 'out' / 'instances_train.json'))
    for number in data.getImgIds():
        first, second = data.loadAnns(data.getAnnIds(number))
        assert (first['bbox'], first['area']) == ([3, 5, 20, 10], 200)
        expected = np.zeros((60, 80), np.uint8)
        expected[30:42, 40:48] = 1
        assert np.array_equal(data.annToMask(second), expected)


def test_what_has_no_nuclei_is_left_out_and_counted(tmp_path, run_tool, capsys):
    found = {path: content for path, content in members().items() if not path.startswith('c/masks')}
    found['d/masks/1.png'] = mask(0, 0, 0, 0)
    run_tool('dataset_converters/nuclei', archive(tmp_path / 'in.zip', found), tmp_path / 'out')
    assert 'left out: 1 images without masks, 1 empty masks' in capsys.readouterr().out
    assert sum(len(content['annotations']) for content in read(tmp_path / 'out').values()) == 2 * len(IDS) - 3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'b/masks/1.png': mask(0, 0, 4, 4, (64, 80))}, 'b/masks/1.png is 80 x 64, its image 80 x 60'),
        ({'b/masks/1.png': mask(0, 0, 4, 4)[:50]}, 'b/masks/1.png cannot be read'),
        ({'g/masks/0.png': mask(0, 0, 4, 4)}, 'has masks for g, but no g/images/g.png'),
        ({'copy/b/masks/1.png': mask(0, 0, 4, 4)}, 'holds b/masks/1.png twice'),
        ({'b/images/x.png': mask(0, 0, 4, 4)}, 'the image of folder b is expected to be b.png'),
        (
            {f'{SAME_START}/{name}.png': mask(0, 0, 4, 4) for name in (f'images/{SAME_START}', 'masks/0')},
            'another id begins with 00071198d059ba7f',
        ),
    ],
)
def test_a_broken_source_leaves_nothing(tmp_path, change, message):
    source = archive(tmp_path / 'in.zip', {**members(), **change})
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / 'out', progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ['in.zip']


def test_errors_are_one_line(tmp_path, run_tool):
    def fails(source, out, message):
        with pytest.raises(SystemExit, match=f'^nuclei.py: error: .*{message}'):
            run_tool('dataset_converters/nuclei', source, out)

    fails(tmp_path / 'no.zip', tmp_path / 'out', 'does not exist; stage1_train.zip')
    (tmp_path / 'page.zip').write_text('<html>')
    fails(tmp_path / 'page.zip', tmp_path / 'out', 'cannot be read: File is not a zip file; a whole zip')
    images = {path: content for path, content in members().items() if '/images/' in path}
    fails(archive(tmp_path / 'test.zip', images), tmp_path / 'out', 'has no masks; ID/masks/NAME.png')
    fails(archive(tmp_path / 'in.zip', members()), tmp_path, 'exists; delete it')


@pytest.fixture(scope='module')
def nuclei(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nuclei')
    convert(archive(folder / 'in.zip', members()), folder / 'data' / 'nuclei', progress=False)
    return folder


@pytest.mark.parametrize('pruner', ['dense', 'cropr', 'oracle'])
def test_config_trains_and_predicts(pruner, nuclei, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(nuclei)
    cfg = Config.fromfile(str(ROOT / f'configs/nuclei/mask-rcnn_{pruner.replace("oracle", "cropr")}-vit_nuclei.py'))
    assert cfg.model.backbone.init_cfg.checkpoint.startswith(str(ROOT / 'cropr_mm'))
    cfg.model.backbone.init_cfg = None
    if pruner == 'oracle':
        cfg.model.backbone.pruning.pruner = dict(type='OraclePruner')
    model = build_model(cfg)
    tokens = tokens_per_block(model.backbone, 256, 256)
    assert tokens == [1025] * 8 if pruner == 'dense' else tokens[6] == pytest.approx(0.14 * 1024, abs=10)

    CroprHook().attach(model)
    if pruner == 'oracle':
        OracleHook().attach(model)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = pseudo_collate([dataset[0], dataset[1]])
    model.train()
    total, log = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    total.backward()
    assert torch.isfinite(total) and ('cropr.loss_aux' in log) == (pruner == 'cropr')
    assert all(p.grad is not None for n, p in model.backbone.named_parameters() if n != 'mask_token')

    model.eval()
    samples = pseudo_collate([DATASETS.build(cfg.test_dataloader.dataset)[0]])
    (result,) = model.test_step(samples)
    assert result.pred_instances.masks.shape[1:] == (60, 80)


def test_crops_cut_masks_with_their_boxes(nuclei, monkeypatch):
    """A crop smaller than the image cuts nuclei, or holds none: the boxes are those of what is left of the masks."""
    pytest.importorskip('mmdet')
    monkeypatch.chdir(nuclei)
    cfg = Config.fromfile(str(ROOT / 'configs/nuclei/mask-rcnn_dense-vit_nuclei.py'))
    settings = cfg.train_dataloader.dataset
    place, choice = next((i, step) for i, step in enumerate(settings.pipeline) if step.type == 'RandomChoice')
    settings.pipeline[place] = dict(choice.transforms[0][0], crop_size=(24, 24))  # without the resize
    build_model(cfg)  # registers mmdetection
    dataset, counts = DATASETS.build(settings), set()
    for _ in range(20):
        sample = dataset[0]['data_samples']
        instances = sample.gt_instances
        assert sample.img_shape <= (24, 24)
        counts.add(len(instances))
        for box, cut in zip(instances.bboxes.tensor, instances.masks.masks):
            rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert {0, 1} <= counts
