"""Checkpoints by address: one reader for all of mmengine's schemes, and one download for all processes."""

import shutil
from urllib.error import URLError

import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from cropr_mm.checkpoint import addresses, read_state_dict


def weights(value):
    """A ViT's names, as far as finding it goes."""
    return {name: torch.full((2,), float(value)) for name in ('patch_embed.proj.weight', 'norm.weight')}


def write(content, path):
    save_file(content, path) if str(path).endswith('.safetensors') else torch.save(content, path)
    return str(path)


@pytest.mark.parametrize('address', ['a.pth', 'https://h/a.pth', 's3://b/a.pth', 'b:s3://c/a.pth', 'petrel://b/a.pth',
                                     'openmmlab://a', 'open-mmlab://a', 'torchvision://a', 'modelzoo://a', 'mmcls://a',
                                     'pavi://a'])  # fmt: skip
def test_every_scheme_of_mmengine_is_read_by_the_package(address):
    assert CheckpointLoader._get_checkpoint_loader(address).__module__ == 'cropr_mm.checkpoint.addresses'


def test_mmengine_has_no_scheme_of_its_own_left():
    assert all(loader.__module__ == 'cropr_mm.checkpoint.addresses' for loader in CheckpointLoader._schemes.values())


@pytest.fixture
def internet(tmp_path, monkeypatch):
    """What there is to download, file by address, and what was done with it, in order."""
    served, done = {}, []

    def download(address, target, progress):
        done.append(address)
        if address not in served:
            raise URLError('no such host')
        shutil.copy(served[address], target)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setattr(addresses, 'barrier', lambda: done.append('barrier'))
    return served, done


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_files_of_one_name_from_two_addresses_are_two(suffix, tmp_path, internet):
    served, done = internet
    for value in (1, 2):
        address = f'https://example.org/{value}/model.{suffix}'
        served[address] = write(weights(value), tmp_path / f'{value}.{suffix}')
        for _ in range(2):  # the second time from torch.hub's folder
            assert (read_state_dict(address)['norm.weight'] == value).all()
        assert done.count(address) == 1


@pytest.mark.parametrize('local_rank, before', [('0', True), ('1', False), (None, False)])
def test_one_process_of_each_machine_downloads_for_the_others(local_rank, before, tmp_path, internet, monkeypatch):
    """Global rank 4 may be the first on its machine."""
    address = 'https://example.org/w.pth'
    served, done = internet
    served[address] = write(weights(1), tmp_path / 'w.pth')
    monkeypatch.setattr(addresses, 'get_rank', lambda: 4)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if local_rank is not None:
        monkeypatch.setenv('LOCAL_RANK', local_rank)
    read_state_dict(address)
    assert done == ([address, 'barrier'] if before else ['barrier', address])


@pytest.mark.parametrize('local_rank', ['0', '1'])
def test_a_download_that_fails_leaves_no_process_waiting(local_rank, internet, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', local_rank)
    with pytest.raises(URLError):
        read_state_dict('https://example.org/w.pth')
    assert internet[1].count('barrier') == 1  # as often as where it succeeds


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_file_address_is_read_where_it_is(suffix, tmp_path, internet):
    path = tmp_path / f'all of it.{suffix}'
    for value in (1, 2):
        write(weights(value), path)
        assert (read_state_dict(path.as_uri())['norm.weight'] == value).all()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"init_cfg.checkpoint='file:///.*all%20of%20it"):
        read_state_dict(path.as_uri())
    assert not internet[1]
