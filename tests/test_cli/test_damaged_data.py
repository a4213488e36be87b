"""A damaged image or label map is named, whatever the loader says."""

import pytest
from mmengine.dataset import BaseDataset

from cropr_mm.cli.damaged_data import damaged_files
from cropr_mm.sample_data import write_sample_data


@pytest.fixture
def folder(tmp_path):
    return write_sample_data(tmp_path / 'sample', train=4, val=2, progress=False)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize('kind, part', [('images', 'img_path'), ('annotations', 'seg_map_path')])
@pytest.mark.parametrize('share', [0, 0.1, 0.6])
def test_a_file_cut_short_is_found_among_whole_ones(folder, kind, part, share):
    files = sorted((folder / kind / 'training').iterdir())
    cut(files[2], share)
    dataset = BaseDataset(lazy_init=True)
    dataset.data_list = [{part: str(file)} for file in files]
    dataset._fully_initialized, dataset.serialize_data = True, False
    (found,) = damaged_files(dataset)
    assert found.startswith(str(files[2]))


def test_whole_files_are_not_suspected(folder):
    dataset = BaseDataset(lazy_init=True)
    dataset.data_list = [{'img_path': str(file)} for file in (folder / 'images' / 'training').iterdir()]
    dataset._fully_initialized, dataset.serialize_data = True, False
    assert damaged_files(dataset) == []
    assert damaged_files(None) == []
