"""The command line around ``write_photo_scenes``."""

import json

import pytest

from ..test_sample_data.photo_folders import write_camvid, write_cifar10


def test_writes_from_the_usual_folders_and_then_leaves_alone(run_tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / 'data' / 'cifar10')
    write_camvid(tmp_path / 'data' / 'camvid')
    for _ in range(2):
        run_tool('make_photo_scenes', 'data/photos', '--train', 2, '--val', 1, '--size', 48)
    assert 'data/photos: 2 training and 1 validation images of 48 x 48 pixels' in capsys.readouterr().out
    assert len(list((tmp_path / 'data' / 'photos' / 'images').rglob('*.jpg'))) == 3
    about = json.loads((tmp_path / 'data' / 'photos' / 'sample_data.json').read_text())
    assert about == dict(kind='photo scenes', train=2, val=1, seed=0, size=48)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--cifar10', 'none'], r'none/train/airplane: no \.jpg or \.png; CIFAR-10 as tools/'),
        (['--camvid', 'none'], 'none/images/train: no images; CamVid as tools/'),
        (['--size', 200], 'size=200; at most 66 is expected'),
        (['--train', 0], 'train=0; an integer from 1 to 100000 is'),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(options, message, run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / 'data' / 'cifar10')
    write_camvid(tmp_path / 'data' / 'camvid')
    with pytest.raises(SystemExit, match=f'^make_photo_scenes.py: error: {message}'):
        run_tool('make_photo_scenes', 'data/photos', *options)
    assert sorted(path.name for path in (tmp_path / 'data').iterdir()) == ['camvid', 'cifar10']


def test_what_is_there_and_no_scenes_is_left(run_tool, tmp_path):
    (tmp_path / 'note.txt').write_text('mine')
    with pytest.raises(SystemExit, match='exists and is no sample data set'):
        run_tool('make_photo_scenes', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['note.txt']
