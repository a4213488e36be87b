"""The page from configs and checkpoints: its numbers are those of tools/test.py, and wrong options end in one line."""

import json
import re

import pytest
import torch
from mmengine.config import Config
from parity import import_mmpretrain

from .conftest import CONFIGS, ROOT, few_iterations
from .test_rates_and_deploy import QUICK, save_checkpoint, test_metrics

pytest.importorskip('altair')
pytest.importorskip('vl_convert')

CONFIG, DET = CONFIGS / 'fcn_cropr-vit_sample.py', CONFIGS / 'mask-rcnn_cropr-vit_sample.py'
DENSE = CONFIGS / 'fcn_dense-vit_sample.py'
OPTIONS = ['--cfg-options', *QUICK]


def page_data(file):
    text = file.read_text(encoding='utf-8')
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    pytest.importorskip('mmseg')
    return save_checkpoint(tmp_path_factory.mktemp('checkpoint') / 'iter_2.pth')


def test_segmentation(run_tool, data_folder, checkpoint, capsys):
    torch.manual_seed(0)
    run_tool('report', CONFIG, checkpoint, 'out/a.html', '--reducer', 'tome', '--rounds', 1, '--images', 2, *OPTIONS)
    said = capsys.readouterr().out
    found = {name: float(share) for name, share in re.findall(r'^(\S+): mIoU ([\d.]+)%, [\d.]+× as fast$', said, re.M)}
    for name, option in dict(dense='=None', tome='.pruner._delete_=True').items():
        more = [f'model.backbone.pruning{option}']
        more += ['model.backbone.pruning.pruner.type=ToMeReducer'] if name == 'tome' else []
        metrics = test_metrics(run_tool, data_folder / name, checkpoint, *more)
        assert found[name] == pytest.approx(metrics['mIoU'], abs=0.1)
    metrics = test_metrics(run_tool, data_folder / 'own', checkpoint)
    assert found['fcn_cropr-vit_sample'] == pytest.approx(metrics['mIoU'], abs=0.1)
    data = page_data(data_folder / 'out' / 'a.html')
    assert [model['name'] for model in data['models']] == ['dense', 'fcn_cropr-vit_sample', 'tome']
    assert len(data['images']) == 2 and said.rstrip().endswith(str(data_folder / 'out' / 'a.html'))
    assert {key for key in data['images'][0]['models'][1] if key in ('after', 'early')} == {'after', 'early'}


def test_other_models_and_image_files(run_tool, data_folder, checkpoint):
    dense = data_folder / 'dense.pth'
    save_checkpoint(dense, DENSE)
    files = sorted((data_folder / 'data' / 'sample' / 'images' / 'validation').glob('*'))[:2]
    names = ['--names', 'one', 'zero', 'two', 'three']
    run_tool('report', CONFIG, checkpoint, 'a.html', '--no-speed', '--dense', DENSE, dense, '--against', CONFIG,
             checkpoint, '--reducer', 'random', '--files', *files, *names, *OPTIONS)  # fmt: skip
    data = page_data(data_folder / 'a.html')
    assert [model['name'] for model in data['models']] == ['zero', 'one', 'two', 'three']
    assert sorted(image['name'] for image in data['images']) == [file.name for file in files]
    one, two = (data['images'][0]['models'][i]['left'] for i in (1, 2))
    assert one == two != data['images'][0]['models'][3]['left']


def test_detection(run_tool, data_folder):
    checkpoint = save_checkpoint(data_folder / 'iter_2.pth', DET)
    run_tool('report', DET, checkpoint, 'a.html', '--no-speed', '--indices', 4, 1, *OPTIONS)
    data = page_data(data_folder / 'a.html')
    annotations = json.loads((data_folder / 'data/sample/annotations/instances_validation.json').read_text())
    ids = {image['file_name']: image['id'] for image in annotations['images']}
    assert {image['name'] for image in data['images']} == {sorted(ids)[1], sorted(ids)[4]}
    for image in data['images']:
        own = [a for a in annotations['annotations'] if a['image_id'] == ids[image['name']] and not a['iscrowd']]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a['bbox'] for a in own)]
        assert [box[:4] for box in image['truth']['boxes']] == [pytest.approx(box, abs=0.06) for box in boxes]


@pytest.mark.slow
def test_classification(run_tool, tmp_path, monkeypatch):
    import_mmpretrain()
    monkeypatch.chdir(tmp_path)
    config = ROOT / 'configs' / 'sample_cls' / 'linear_cropr-vit_crops.py'
    few = few_iterations(2, extra=['test_dataloader.dataset.count=6'])
    run_tool('report', config, save_checkpoint(tmp_path / 'a.pth', config), 'a.html', '--no-speed', *few)
    data = page_data(tmp_path / 'a.html')
    assert data['kind'] == 'classification' and len(data['images']) == 6
    assert {image['truth']['top'][0][0] for image in data['images']} <= set(range(6))


@pytest.mark.parametrize(
    'options, message',
    [
        (['--reducer', 'fancy'], '--reducer fancy; valid are random, variance'),
        (['--names', 'a'], '--names a: 2 different names are expected'),
        (['--indices', 99], '--indices 99: the test set has images 0 to 5'),
        (['--images', 0], '--images=0; a positive integer is expected'),
        (['--files', 'no.jpg'], "--files 'no.jpg': no such file"),
        (['--rate', 1.5], '--rate=1.5'),
    ],
)
def test_wrong_options_end_in_one_line(run_tool, data_folder, checkpoint, options, message):
    with pytest.raises(SystemExit) as end:
        run_tool('report', CONFIG, checkpoint, 'a.html', '--no-speed', *options, *OPTIONS)
    assert str(end.value).startswith(f'report.py: error: {message}') and '\n' not in str(end.value)
    assert not (data_folder / 'a.html').exists()


def test_nothing_to_compare(run_tool, data_folder):
    with pytest.raises(SystemExit, match='has no pruning; add --reducer NAME or --against'):
        run_tool('report', DENSE, save_checkpoint(data_folder / 'a.pth', DENSE), 'a.html', *OPTIONS)


def test_test_sets_must_have_the_same_images(run_tool, data_folder, checkpoint):
    other = Config.fromfile(str(CONFIG))
    other.test_dataloader.dataset.indices = 3
    other.dump(str(data_folder / 'other.py'))
    with pytest.raises(SystemExit, match=r'different numbers of images \(.*: 6, other: 3\)'):
        run_tool('report', CONFIG, checkpoint, 'a.html', '--against', 'other.py', checkpoint, *OPTIONS)
