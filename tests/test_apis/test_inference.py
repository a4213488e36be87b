"""The libraries' own inference APIs, in a process that imports the library alone: the config brings the package."""

import os
import pickle
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from ..test_tools.conftest import ROOT, few_iterations

pytestmark = pytest.mark.slow
try:
    distribution('mmsegmentation')
    NAMED = True
except PackageNotFoundError:
    NAMED = False

SEG = """
from mmseg.apis import MMSegInferencer, inference_model, init_model
model = init_model(config, checkpoint, device='cpu', cfg_options=options)
one = inference_model(model, images[0])
several = inference_model(model, images)
results['one'], *results['several'] = (r.pred_sem_seg.data[0].numpy() for r in (one, *several))
results['classes'] = model.dataset_meta['classes']
# A deployed checkpoint brings its config along.
inferencer = MMSegInferencer(None if options else config, weights=checkpoint, device='cpu')
results['inferencer'] = inferencer(images, return_datasamples=False, show=False)['predictions']
"""
DET = """
from mmdet.apis import DetInferencer, inference_detector, init_detector
model = init_detector(config, checkpoint, device='cpu', cfg_options=options)
def boxes(result):
    found = result.pred_instances
    return {key: found[key].numpy() for key in ('bboxes', 'scores', 'labels', 'masks')}
results['one'] = boxes(inference_detector(model, images[0]))
results['several'] = [boxes(result) for result in inference_detector(model, images)]
results['classes'] = model.dataset_meta['classes']
inferencer = DetInferencer(None if options else config, weights=checkpoint, device='cpu', show_progress=False)
results['inferencer'] = inferencer(images, return_datasamples=False, no_save_pred=True)['predictions']
"""
FRAME = """
import importlib, os, pickle, sys
import mmengine.config.config
importlib.import_module({library!r})
mmengine.config.config.FormatCode = lambda text, **_: (text, True)  # prints no config neatly: seconds less
for config, checkpoint, options, images, out in {calls!r}:
    process = os.fork()
    if process:
        assert os.waitpid(process, 0)[1] == 0, out
        continue
    status = 1
    try:
        assert 'cropr_mm' not in sys.modules
        results = {{}}
        exec({code!r})
        with open(out, 'wb') as file:
            pickle.dump(results, file)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)
"""


def images(folder):
    return sorted(str(file) for file in (folder / 'data' / 'sample' / 'images' / 'validation').iterdir())


def fresh_processes(library, code, config, trained, deployed, images):
    """Run code on the trained and on the deployed checkpoint, each where nothing of the package is imported yet.

    Both are copies of one process, which has imported the library: that takes longer than the rest.
    """
    calls = [(str(config), str(trained), None, images, 'trained.pkl'),
             (str(config), str(deployed), {'model.backbone.pruning.deploy': True}, images, 'deployed.pkl')]  # fmt: skip
    script = FRAME.format(library=f'{library}.apis', calls=calls, code=code)
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True,
                         env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for call in calls:
        with open(call[-1], 'rb') as file:
            yield pickle.load(file)


@pytest.mark.skipif(not NAMED, reason="OneDL's mmengine finds no mmseg:: before cropr_mm is imported")
def test_mmseg(trained, data_folder, run_tool):
    """The library's API in processes of its own, on a trained and on a deployed checkpoint, against tools/test.py."""
    config, *checkpoints = trained('mmseg')
    run_tool('test', config, checkpoints[0], '--work-dir', 'test', '--out', 'maps', *few_iterations(1, batch=6))
    files = images(data_folder)
    # Written with the label 0, void, in front of the classes.
    expected = [np.array(Image.open(f'maps/{file.rsplit("/", 1)[1].replace(".jpg", ".png")}')) - 1 for file in files]
    assert len({label for labels in expected for label in np.unique(labels)}) > 1
    for results in fresh_processes('mmseg', SEG, config, *checkpoints, files):
        assert results['classes'] == Config.fromfile(config).train_dataloader.dataset.metainfo.classes
        maps = [*results['several'], *results['inferencer']]
        assert len(maps) == len(files) * 2
        assert (results['one'] == expected[0]).mean() > 0.999
        for found, wanted in zip(maps, expected * 2):
            # The batch is another, and a tie at the last decimal may go the other way.
            assert (np.asarray(found) == wanted).mean() > 0.999


def test_mmdet(trained, data_folder, run_tool):
    """As for mmseg, with boxes and masks."""
    config, *checkpoints = trained('mmdet')
    run_tool('test', config, checkpoints[0], '--work-dir', 'test', '--out', 'found.pkl', *few_iterations(1, batch=6))
    with open('found.pkl', 'rb') as file:
        expected = {entry['img_path'].rsplit('/', 1)[1]: entry['pred_instances'] for entry in pickle.load(file)}
    assert sum(len(found['scores']) for found in expected.values()) > 0
    files = images(data_folder)
    names = [file.rsplit('/', 1)[1] for file in files]
    for results in fresh_processes('mmdet', DET, config, *checkpoints, files):
        assert tuple(results['classes']) == Config.fromfile(config).train_dataloader.dataset.metainfo.classes
        assert len(results['several']) == len(files)
        for name, found in zip((names[0], *names), (results['one'], *results['several'])):
            wanted = expected[name]
            torch.testing.assert_close(torch.tensor(found['scores']), wanted['scores'], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(torch.tensor(found['bboxes']), wanted['bboxes'], rtol=1e-2, atol=1e-1)
            assert found['masks'].shape == (len(wanted['scores']), 96, 96)
        for found, name in zip(results['inferencer'], names):
            torch.testing.assert_close(torch.tensor(found['scores']), expected[name]['scores'], rtol=1e-3, atol=1e-4)


def variant(name, base, text):
    """A config of the current folder that inherits from another."""
    with open(name, 'w') as file:
        file.write(f'_base_ = [{str(base)!r}]\n{text}')
    return name


def label_maps(folder):
    return np.stack([np.array(Image.open(file)) for file in sorted(folder.iterdir())])


def test_augmented_segmentation(trained, run_tool, data_folder):
    config, checkpoint, _ = trained('mmseg')
    one_view = Config.fromfile(config).tta_pipeline
    one_view[1].transforms[:2] = [[views[0]] for views in one_view[1].transforms[:2]]
    one = variant('one_view.py', config, f'tta_pipeline = {one_view!r}')
    options = few_iterations(1, batch=2)
    run_tool('test', config, checkpoint, '--work-dir', 'test', '--out', 'plain', *options)
    run_tool('test', one, checkpoint, '--tta', '--work-dir', 'test', '--out', 'one', *options)
    run_tool('test', config, checkpoint, '--tta', '--work-dir', 'test', '--out', 'four', *options)
    plain, one, four = (label_maps(data_folder / name) for name in ('plain', 'one', 'four'))
    assert plain.shape == (6, 96, 96)
    assert (one == plain).mean() > 0.999, (one == plain).mean()
    assert 0.3 < (four == plain).mean() < 1  # the same images, seen larger and from the other side


def test_augmented_detection(trained, run_tool):
    config, checkpoint, _ = trained('mmdet')
    boxes_alone = [
        *few_iterations(1, batch=2),
        *('model.roi_head.mask_head=None', 'model.roi_head.mask_roi_extractor=None', 'test_evaluator.metric=bbox'),
    ]
    found = {}
    for name, more in (('plain', []), ('tta', ['--tta'])):
        run_tool('test', config, checkpoint, *more, '--work-dir', 'test', '--out', f'{name}.pkl', *boxes_alone)
        with open(f'{name}.pkl', 'rb') as file:
            found[name] = pickle.load(file)
    assert len(found['tta']) == 6
    for plain, tta in zip(found['plain'], found['tta']):
        assert plain['img_path'] == tta['img_path']
        boxes = tta['pred_instances']['bboxes']
        assert len(boxes) > 0
        assert boxes.min() >= 0 and boxes.max() <= 96  # back in the pixels of the image
    assert any(len(p['pred_instances']['scores']) != len(t['pred_instances']['scores'])
               or not torch.equal(p['pred_instances']['scores'], t['pred_instances']['scores'])
               for p, t in zip(found['plain'], found['tta']))  # fmt: skip


def test_sliding_windows(trained, run_tool, data_folder):
    config, checkpoint, _ = trained('mmseg')
    options = few_iterations(1, batch=2)
    windows = 'model = dict(test_cfg=dict(_delete_=True, mode="slide", crop_size=({0}, {0}), stride=({1}, {1})))'
    once, sliding = (variant(f'slide{side}.py', config, windows.format(side, side * 2 // 3)) for side in (96, 48))
    for name, cfg in (('whole', config), ('once', once), ('sliding', sliding)):
        run_tool('test', cfg, checkpoint, '--work-dir', 'test', '--out', name, *options)
    whole, once, sliding = (label_maps(data_folder / name) for name in ('whole', 'once', 'sliding'))
    assert np.array_equal(once, whole)  # one window as large as the image

    # A quarter of the windows' grid: what each window gives, put together by hand.
    from cropr_mm.cli.model import load_model
    from cropr_mm.utils.libraries import register_library

    cfg = Config.fromfile('slide48.py')
    register_library(cfg)
    model = load_model(cfg, str(checkpoint))
    files = images(data_folder)
    image = torch.from_numpy(np.array(Image.open(files[0]))[..., ::-1].copy()).permute(2, 0, 1)
    inputs = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
    total, seen = torch.zeros(1, 9, 96, 96), torch.zeros(96, 96)
    with torch.no_grad():
        for y in (0, 32, 48):
            for x in (0, 32, 48):
                crop = inputs[:, :, y : y + 48, x : x + 48]
                total[:, :, y : y + 48, x : x + 48] += model.encode_decode(crop, [dict(img_shape=(48, 48))])
                seen[y : y + 48, x : x + 48] += 1
    expected = (total / seen).argmax(1)[0].numpy() + 1
    assert (expected == sliding[0]).mean() > 0.999
    assert not np.array_equal(sliding, whole)


def test_a_deployed_checkpoint_is_not_taken_for_a_trained_one(trained):
    config, _, deployed = trained('mmseg')
    from mmseg.apis import init_model

    with pytest.raises(ValueError, match='the checkpoint holds folded scorers, for inference alone'):
        init_model(str(config), str(deployed), device='cpu')
