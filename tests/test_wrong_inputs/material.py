"""What lies in the workshop: small data, configs without a base, checkpoints, and files with something wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from cropr_mm import CroprViT
from cropr_mm.cli.model import build_model
from cropr_mm.utils.libraries import register_library

from ..test_tools.conftest import CONFIGS

ARCH = dict(family='vit', embed_dim=32, depth=4, num_heads=2, mlp_ratio=2.0)


def furnish(root: Path, sample: Path) -> None:
    """Fill a folder; ``sample`` is a data set that make_sample_data.py wrote."""
    shutil.copytree(sample, root / 'data' / 'sample')
    _write_configs(root)
    _write_checkpoints(root)
    _write_wrong_files(root)
    _write_wrong_labels(root)
    _write_wrong_images(root)
    _write_odd_but_right(root)


def _write_configs(root: Path) -> None:
    names = dict(seg='fcn_cropr', dense='fcn_dense', det='mask-rcnn_cropr', densedet='mask-rcnn_dense')
    for name, config in names.items():
        cfg = Config.fromfile(str(CONFIGS / f'{config}-vit_sample.py'))
        cfg.model.backbone.update(arch=ARCH, init_cfg=None)
        if name in ('seg', 'dense'):
            cfg.model.decode_head.update(in_channels=32, channels=32)
        else:
            cfg.model.neck[1].in_channels = 32
        for loader in ('train', 'val', 'test'):
            cfg[f'{loader}_dataloader'].update(batch_size=2, num_workers=0, persistent_workers=False)
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.interval = 2
        cfg.dump(root / f'{name}.py')
    (root / 'broken.py').write_text("model = dict(type='EncoderDecoder'\n")
    (root / 'raising.py').write_text('import_of_nothing = undefined_name\n')
    (root / 'nothing.py').write_text('')
    (root / 'no_base.py').write_text("_base_ = './sge.py'\n")
    (root / 'no_import.py').write_text("_base_ = './seg.py'\ncustom_imports = dict(imports=['croper_mm'])\n")


def _write_checkpoints(root: Path) -> None:
    for name in ('seg', 'dense', 'det', 'densedet'):
        cfg = Config.fromfile(str(root / f'{name}.py'))
        register_library(cfg)
        torch.save(dict(meta=dict(cfg=cfg.pretty_text), state_dict=build_model(cfg).state_dict()), root / f'{name}.pth')
    whole = (root / 'seg.pth').read_bytes()
    (root / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    (root / 'empty.pth').write_bytes(b'')
    (root / 'text.pth').write_text('<html>404: not found</html>')
    torch.save(dict(state_dict={}), root / 'hollow.pth')
    torch.save([1, 2], root / 'list.pth')
    torch.save(CroprViT(dict(ARCH, depth=6), img_size=96, patch_size=8).state_dict(), root / 'deep.pth')
    torch.save(CroprViT(dict(ARCH, embed_dim=64), img_size=96, patch_size=8).state_dict(), root / 'wide.pth')
    (root / 'cut.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a')


def _write_wrong_files(root: Path) -> None:
    (root / 'text.txt').write_text('text')
    (root / 'full').mkdir()
    (root / 'full' / 'something').write_text('text')
    (root / 'nobody').mkdir()
    photo = root / 'photo.jpg'
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(photo)
    (root / 'text.jpg').write_text('text')
    (root / 'cut.jpg').write_bytes(photo.read_bytes()[:300])
    (root / 'text.onnx').write_text('text')
    (root / 'text.pt2').write_text('text')
    (root / 'text.zip').write_text('text')


def _write_wrong_labels(root: Path) -> None:
    annotations = root / 'data' / 'sample' / 'annotations'
    whole = json.loads((annotations / 'instances_training.json').read_text())
    wrong = {
        'no_json': 'text',
        'empty': '',
        'list': '[]',
        'no_images': json.dumps(dict(whole, images=[], annotations=[])),
        'no_categories': json.dumps({key: value for key, value in whole.items() if key != 'categories'}),
        'no_objects': json.dumps(dict(whole, annotations=[])),
        'other_classes': json.dumps(dict(whole, categories=[dict(id=1, name='cat')])),
        'lost_image': json.dumps(dict(whole, images=[dict(whole['images'][0], file_name='lost.jpg')])),
        'cut': json.dumps(whole)[:1000],
    }
    for name, text in wrong.items():
        (root / f'{name}.json').write_text(text)


def _write_wrong_images(root: Path) -> None:
    """Data sets with a single image for training, in which the image or its label map is wrong."""
    sample = root / 'data' / 'sample'
    for name in ('text', 'cut', 'labels', 'colour', 'lost'):
        image = root / 'wrong' / name / 'images' / 'training' / '00000.jpg'
        label = root / 'wrong' / name / 'annotations' / 'training' / '00000.png'
        for file in (image, label):
            file.parent.mkdir(parents=True)
            shutil.copyfile(sample / file.relative_to(root / 'wrong' / name), file)
        pixels = np.asarray(Image.open(label))
        if name == 'text':
            image.write_text('text')
        elif name == 'cut':
            image.write_bytes(image.read_bytes()[:200])
        elif name == 'labels':
            Image.fromarray(pixels + np.uint8(100)).save(label)
        elif name == 'colour':
            Image.fromarray(np.repeat(pixels[..., None], 3, 2)).save(label)
        else:
            label.unlink()


def _write_odd_but_right(root: Path) -> None:
    """One image; labels of one class; images without an object."""
    one = root / 'one'
    for kind in ('images', 'annotations'):
        (one / kind / 'training').mkdir(parents=True)
        (file,) = (root / 'data' / 'sample' / kind / 'training').glob('00000.*')
        shutil.copyfile(file, one / kind / 'training' / file.name)
    label = np.ones((96, 96), np.uint8)
    for kind, pixels in (('images', np.repeat(label[..., None], 3, 2)), ('annotations', label)):
        (root / 'flat' / kind / 'training').mkdir(parents=True)
        Image.fromarray(pixels).save(root / 'flat' / kind / 'training' / f'0.{"jpg" if kind == "images" else "png"}')
    (root / 'one_class.py').write_text("""_base_ = './seg.py'
train_dataloader = dict(dataset=dict(data_root='flat', metainfo=dict(classes=['sand'], palette=[[0, 0, 0]])))
val_dataloader = val_cfg = val_evaluator = None
model = dict(
    decode_head=dict(num_classes=1, out_channels=1),
    backbone=dict(pruning=dict(pruner=dict(num_classes=1))),
)
""")
    (root / 'no_objects.py').write_text("""_base_ = './det.py'
train_dataloader = dict(dataset=dict(ann_file='../../no_objects.json', filter_cfg=None))
val_dataloader = val_cfg = val_evaluator = None
""")
