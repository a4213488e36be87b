"""One checkpoint at other rates, stripped for deployment, and exported."""

import csv
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.utils import digit_version

from cropr_mm.benchmark.flops import pruned_ratio
from cropr_mm.cli.model import build_model
from cropr_mm.export import OLDEST, Exported

from .conftest import CONFIGS

CONFIG = CONFIGS / 'fcn_cropr-vit_sample.py'
DET = CONFIGS / 'mask-rcnn_cropr-vit_sample.py'
QUICK = [f'test_dataloader.{key}' for key in ('num_workers=0', 'persistent_workers=False', 'batch_size=3')]


def save_checkpoint(file, config=CONFIG):
    """What training writes, as far as weights and their description go: random ones, and an optimizer's state."""
    cfg = Config.fromfile(str(config))
    model = build_model(cfg)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if 'pruners' in name or name.startswith(('decode_head', 'backbone.norm')):
            parameter.data += torch.randn_like(parameter) * 0.1
    weights = model.state_dict()
    meta = dict(dataset_meta=dict(classes=('a', 'b')), iter=2, experiment_name='of the training')
    moments = {i: dict(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
               for i, p in enumerate(model.parameters())}  # fmt: skip
    torch.save(dict(meta=meta, state_dict=weights, optimizer=dict(state=moments)), file)
    return file


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    pytest.importorskip('mmseg')
    return save_checkpoint(tmp_path_factory.mktemp('checkpoint') / 'iter_2.pth')


def test_metrics(run_tool, folder, checkpoint, *options, config=CONFIG):
    """What tools/test.py measures."""
    run_tool('test', config, checkpoint, '--work-dir', folder, '--cfg-options', *QUICK, *options)
    (file,) = folder.glob('*/*.json')
    return json.loads(file.read_text())


test_metrics.__test__ = False


def test_a_checkpoint_is_evaluated_at_other_rates(run_tool, data_folder, checkpoint, capsys):
    """The sweep gives what tools/test.py gives with the rate in the command line, nothing else changed."""
    run_tool('sweep_rates', CONFIG, checkpoint, '--rates', 10, '--out', 'sweep', '--rounds', 1, '--work-dir', 'work',
             '--cfg-options', *QUICK)  # fmt: skip
    assert sorted(path.name for path in (data_folder / 'sweep').iterdir()) == ['sweep.csv', 'sweep.png']
    assert (data_folder / 'sweep' / 'sweep.png').read_bytes().startswith(b'\x89PNG')
    with open(data_folder / 'sweep' / 'sweep.csv') as file:
        dense, pruned = csv.DictReader(file)
    assert (float(dense['rate']), float(pruned['rate'])) == (0, 10)
    assert float(dense['speedup']) == 1 and float(dense['tokens_pruned']) == 0
    said = capsys.readouterr().out
    assert 'images/s' in said
    assert said.splitlines()[-2:] == ['written: sweep/sweep.png', 'written: sweep/sweep.csv']

    cfg = Config.fromfile(str(CONFIG))
    cfg.merge_from_dict({'model.backbone.pruning.rate': 10})
    share = pruned_ratio(build_model(cfg).backbone, 96, 96)
    assert float(pruned['tokens_pruned']) == pytest.approx(share, rel=1e-4) and share > 0.3
    same = test_metrics(run_tool, data_folder / 'pruned', checkpoint, 'model.backbone.pruning.rate=10')
    full = test_metrics(run_tool, data_folder / 'dense', checkpoint, 'model.backbone.pruning=None')
    for row, metrics in ((pruned, same), (dense, full)):
        for name in ('mIoU', 'aAcc'):
            assert float(row[name]) == pytest.approx(metrics[name], rel=1e-4), name
    assert full['aAcc'] != same['aAcc']


@pytest.mark.slow
def test_detectors_are_swept_by_both_metrics(run_tool, data_folder):
    """Two evaluations of a Mask R-CNN: the metrics of boxes and masks have other names than mIoU."""
    pytest.importorskip('mmdet')
    file = save_checkpoint(data_folder / 'det.pth', DET)
    run_tool('sweep_rates', DET, file, '--rates', 20, '--images', 1, '--rounds', 1, '--work-dir', 'work',
             '--cfg-options', *QUICK)  # fmt: skip
    with open(data_folder / 'work' / 'sweep.csv') as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 and all(0 <= float(row[f'coco/{kind}_mAP']) <= 1 for row in rows for kind in ('bbox', 'segm'))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--rates', '8', '30'], r'pruning.rate=30 leaves -6 of 144 tokens after block 4; at most 23'),
        (['--rates', 'many'], r"rate 'many': a number of tokens"),
        (['--rates', '8', '--rounds', '0'], r'rounds=0'),
        (['--rates', '8', '--images', '0'], r'--images=0'),
        (['--rates', '8', '--launcher', 'pytorch'], r'--launcher pytorch'),
        (['--rates', '8', '--metric', 'bbox_mAP'], r"metric 'bbox_mAP': the evaluator gives aAcc, mIoU"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_in_one_line(run_tool, data_folder, checkpoint, arguments, message):
    with pytest.raises(SystemExit, match=rf'^sweep_rates.py: error: .*{message}'):
        run_tool('sweep_rates', CONFIG, checkpoint, '--out', 'sweep', '--rounds', 1, '--images', 1, *arguments,
                 '--cfg-options', *QUICK)  # fmt: skip
    assert not (data_folder / 'sweep').exists()


def test_a_sweep_needs_a_checkpoint_of_the_config(run_tool, data_folder, checkpoint):
    rates = ['--rates', 8, '--cfg-options', *QUICK]
    with pytest.raises(SystemExit, match=r"checkpoint='gone.pth': no such file"):
        run_tool('sweep_rates', CONFIG, 'gone.pth', *rates)
    with pytest.raises(SystemExit, match=r'pruning is None'):
        run_tool('sweep_rates', CONFIGS / 'fcn_dense-vit_sample.py', checkpoint, *rates)
    other = data_folder / 'other.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(1))), other)
    with pytest.raises(SystemExit, match=r'other.pth does not fit .*missing: backbone.cls_token.*left over: a'):
        run_tool('sweep_rates', CONFIG, other, *rates)


# --- deployment -----------------------------------------------------------------------------------------------


def test_a_stripped_checkpoint_tests_like_the_one_it_is_made_from(run_tool, data_folder, checkpoint, capsys):
    option = 'model.backbone.pruning.deploy=True'
    before = test_metrics(run_tool, data_folder / 'before', checkpoint)
    for suffix in ('.pth', '.safetensors'):
        out = data_folder / suffix / f'deployed{suffix}'
        run_tool('deploy', CONFIG, checkpoint, out)
        said = capsys.readouterr().out
        assert option in said and str(out) in said
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        after = test_metrics(run_tool, data_folder / f'after{suffix}', out, option)
        for name in ('mIoU', 'aAcc'):
            assert after[name] == pytest.approx(before[name], rel=1e-4)


def test_a_stripped_checkpoint_holds_little_more_than_a_dense_one(run_tool, data_folder, checkpoint):
    run_tool('deploy', CONFIG, checkpoint, 'deployed.pth')
    content, size = torch.load('deployed.pth'), (data_folder / 'deployed.pth').stat().st_size
    assert set(content) == {'meta', 'state_dict'} and content['meta']['iter'] == 2
    assert 'experiment_name' not in content['meta']
    assert Config.fromstring(content['meta']['cfg'], '.py').model.backbone.pruning.deploy is True
    dense = build_model(Config.fromfile(str(CONFIGS / 'fcn_dense-vit_sample.py')))
    weights = sum(v.numel() * v.element_size() for v in dense.state_dict().values())
    assert weights < size < weights * 1.02 < checkpoint.stat().st_size / 2


def test_what_is_wrong_with_a_deployment_is_said_in_one_line(run_tool, data_folder, checkpoint):
    for out, message in (('model.bin', r"out='model.bin'.*ends in .pth or .safetensors"),
                         (checkpoint, r'is the checkpoint itself')):  # fmt: skip
        with pytest.raises(SystemExit, match=rf'^deploy.py: error: .*{message}'):
            run_tool('deploy', CONFIG, checkpoint, out)
    with pytest.raises(SystemExit, match=r"checkpoint='gone.pth': no such file"):
        run_tool('deploy', CONFIG, 'gone.pth', 'out.pth')
    with pytest.raises(SystemExit, match=r'no CroprViT with pruning'):
        run_tool('deploy', CONFIGS / 'fcn_dense-vit_sample.py', checkpoint, 'out.pth')
    with pytest.raises(SystemExit, match=r'holds no moving average'):
        run_tool('deploy', CONFIG, checkpoint, 'out.pth', '--no-ema')
    run_tool('deploy', CONFIG, checkpoint, 'out.pth')
    with pytest.raises(SystemExit, match=r'folded'):
        run_tool('deploy', CONFIG, 'out.pth', 'again.pth')
    assert not (data_folder / 'again.pth').exists() and not (data_folder / 'model.bin').exists()


# --- export ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version(OLDEST), reason=f'exports need PyTorch {OLDEST}')
def test_an_export_is_compared_on_the_users_images(run_tool, data_folder, checkpoint, capsys):
    images = sorted((data_folder / 'data' / 'sample').rglob('*.png'))[:1]
    run_tool('export', CONFIG, checkpoint, 'model.pt2', '--size', 48, 64, '--images', *images)
    said = capsys.readouterr().out
    assert 'for images of 48 × 64 pixels in batches of any size; 0.00% of the values differ' in said
    assert 'aten.conv2d.default' in said
    (labels,) = torch.export.load('model.pt2').module()(torch.rand(3, 3, 48, 64) * 255)
    assert labels.shape == (3, 48, 64)


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version(OLDEST), reason=f'exports need PyTorch {OLDEST}')
def test_an_export_for_images_of_any_size(run_tool, data_folder, checkpoint, capsys, monkeypatch):
    def export(model, images, out, open_size=False):
        assert open_size and images.shape == (2, 3, 48, 64)
        Path(out).write_bytes(b'')
        return Exported([], 0.0, 0.0)

    monkeypatch.setattr('cropr_mm.export.export', export)
    run_tool('export', CONFIG, checkpoint, 'model.pt2', '--size', 48, 64, '--open-size')
    assert 'for images of any size in batches of any size; 0.00% of the values differ' in capsys.readouterr().out


@pytest.mark.parametrize(
    'out, options, message',
    [
        ('model.trt', [], r"out='model\.trt': a file name that ends in \.pt2 or \.onnx is expected"),
        ('model.pt2', ['--size', 0, 64], r'--size=0'),
        ('model.pt2', ['--images', 'gone.png'], r"--images 'gone\.png': no such file"),
    ],
)
def test_what_is_wrong_with_an_export_is_said_in_one_line(run_tool, data_folder, checkpoint, out, options, message):
    with pytest.raises(SystemExit, match=rf'^export.py: error: {message}'):
        run_tool('export', CONFIG, checkpoint, out, *options)
    assert not (data_folder / out).exists()
