"""Missing files are named with their key before anything starts."""

import pytest
from mmengine.config import Config

from cropr_mm.cli.inputs import check_data, check_weights

DATASET = dict(ann_file='a.json', data_prefix=dict(img='images', seg='labels'))


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: dict(type='RepeatDataset', times=2, dataset=d)])
def test_missing_data_names_key_path_and_remedy(tmp_path, wrap):
    cfg = Config(dict(train_dataloader=dict(dataset=wrap(dict(DATASET, data_root=str(tmp_path)))),
                      data_hint='Make it with: make data'))  # fmt: skip
    steps = ('ann_file', 'a.json'), ('data_prefix.img', 'images'), ('data_prefix.seg', 'labels')
    for key, name in steps:
        with pytest.raises(FileNotFoundError, match=rf'train_dataloader\..*{key}.*/{name} .*Make it with: make data'):
            check_data(cfg, ['train_dataloader', 'val_dataloader'])
        (tmp_path / name).mkdir()
        (tmp_path / name / 'one.jpg').touch()
    check_data(cfg, ['train_dataloader', 'val_dataloader'])


def test_a_prefix_may_be_one_folder(tmp_path):
    """As in mmpretrain's configs."""
    cfg = Config(dict(val_dataloader=dict(dataset=dict(data_root=str(tmp_path), data_prefix='val'))))
    with pytest.raises(FileNotFoundError, match=r'val_dataloader.dataset.data_prefix: .*/val does not exist'):
        check_data(cfg, ['val_dataloader'])


def test_data_in_other_places_is_left_to_mmengine():
    remote = [dict(DATASET, data_root='s3://bucket/'), dict(DATASET, backend_args=dict(backend='petrel'))]
    cfg = Config(dict(val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=remote))))
    check_data(cfg, ['val_dataloader'])
    cfg.val_dataloader.dataset.datasets.append(dict(DATASET, data_root='/nowhere'))
    with pytest.raises(FileNotFoundError, match=r'val_dataloader.dataset.datasets\[2\].data_root: /nowhere'):
        check_data(cfg, ['val_dataloader'])


@pytest.mark.parametrize(
    'model, key',
    [
        (lambda init: dict(backbone=dict(init_cfg=init)), r'model\.backbone\.init_cfg\.checkpoint'),
        (
            lambda init: dict(detector=dict(neck=[dict(), dict(init_cfg=[init])])),
            r'model\.detector\.neck\[1\]\.init_cfg\[0\]\.checkpoint',
        ),
    ],
)
def test_a_missing_checkpoint_names_key_path_and_remedy(tmp_path, model, key):
    file = tmp_path / 'vit.pth'
    init = dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    cfg = Config(dict(model=model(init), checkpoint_hint='Download it.'))
    with pytest.raises(FileNotFoundError, match=rf'^{key}: {file} does not exist\. Download it\.$'):
        check_weights(cfg)
    cfg.checkpoint_hint = None
    with pytest.raises(FileNotFoundError, match=rf'^{key}: {file} does not exist$'):
        check_weights(cfg)
    file.touch()
    check_weights(cfg)


def test_checkpoints_that_are_no_files_here_are_left_to_what_loads_them():
    remote = [dict(type='Pretrained', checkpoint='torchvision://resnet50'), dict(type='Kaiming', layer='Conv2d')]
    check_weights(Config(dict(model=dict(backbone=dict(init_cfg=remote), pretrained=None))))
    check_weights(Config(dict()))
