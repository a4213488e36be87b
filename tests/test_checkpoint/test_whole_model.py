"""Weights of whole models: which of a file's are read, how strictly they are loaded, and what is written."""

import json
import pickle

import pytest
import torch
from helpers import small_vit
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from safetensors import safe_open
from torch import nn

from cropr_mm.checkpoint import load_strictly, read_checkpoint, save_weights


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.fc(torch.stack(inputs)).square().mean())


def test_averaged_weights_and_those_that_the_optimizer_moved(tmp_path):
    """As mmengine's EMAHook saves them."""
    loader = dict(
        dataset=[dict(inputs=torch.ones(2))] * 2,
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    average = EMAHook(momentum=0.5)
    runner = Runner(
        Line(),
        str(tmp_path),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        train_dataloader=loader,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[average],
        log_level='ERROR',
        experiment_name=tmp_path.name,
    )
    runner.train()
    file = str(tmp_path / 'epoch_1.pth')
    averaged, moved = (read_checkpoint(file, ema)[0]['fc.weight'] for ema in (True, False))
    assert torch.equal(averaged, average.ema_model.module.fc.weight) and torch.equal(moved, runner.model.fc.weight)
    assert not torch.equal(averaged, moved)


def test_without_an_average_there_is_nothing_to_choose(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(2))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a.pth: holds no moving average'):
        read_checkpoint(str(tmp_path / 'a.pth'), ema=False)


@pytest.mark.parametrize('content', [dict(state_dict={}), dict(a=1)])
def test_a_file_without_weights_is_named(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a.pth: holds no weights'):
        read_checkpoint(str(tmp_path / 'a.pth'))


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / 'a.pth').write_text('not one')
    with pytest.raises(ValueError, match=r'a.pth: cannot be read as a checkpoint'):
        read_checkpoint(str(tmp_path / 'a.pth'))


def test_the_names_of_a_wrapped_model_are_unwrapped(tmp_path):
    torch.save({'module.a': torch.ones(2)}, tmp_path / 'a.pth')
    assert list(read_checkpoint(str(tmp_path / 'a.pth'))[0]) == ['a']


def test_weights_that_do_not_fit_are_listed():
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r'x.pth does not fit .*missing: bias; left over: gain'):
        load_strictly(model, dict(weight=torch.zeros(3, 2), gain=torch.zeros(1)), 'x.pth')
    with pytest.raises(ValueError, match=r'x.pth does not fit .*weight.*\[2, 2\].*\[3, 2\]'):
        load_strictly(model, dict(weight=torch.zeros(2, 2), bias=torch.zeros(3)), 'x.pth')


# --- what is written ------------------------------------------------------------------------------------------


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'model.bin.*ends in .pth or .safetensors'):
        save_weights(tmp_path / 'model.bin', dict(a=torch.ones(1)), {})


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_an_interrupted_write_leaves_the_old_file(suffix, tmp_path):
    class Interrupted(dict):
        def items(self):
            raise KeyboardInterrupt

    file = tmp_path / f'model{suffix}'
    file.write_text('old')
    with pytest.raises(KeyboardInterrupt):
        save_weights(file, Interrupted(a=torch.ones(1)), {})
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_weights(file, dict(a=torch.ones(1)), {'x': lambda: 0} if suffix == '.pth' else {(): 0})
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == 'old'


def test_safetensors_keep_what_stands_beside_the_weights(tmp_path):
    file = save_weights(tmp_path / 'm.safetensors', dict(a=torch.ones(2).t()), dict(iter=3))
    with safe_open(file, 'pt') as opened:
        assert json.loads(opened.metadata()['meta']) == dict(iter=3)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('wrapped', [False, True])
def test_the_patch_grid_travels_with_the_weights(wrapped, suffix, tmp_path):
    """4 × 9 patches are as many as 6 × 6; only the recorded grid tells them apart."""
    oblong = small_vit(img_size=(16, 36))
    model = nn.ModuleDict({'backbone': oblong, 'head': nn.Linear(2, 2)}) if wrapped else oblong
    file = save_weights(tmp_path / f'oblong{suffix}', model.state_dict(), {})
    again, square = (
        small_vit(img_size=size, init_cfg=dict(type='Pretrained', checkpoint=str(file))) for size in ((16, 36), 24)
    )
    again.init_weights()
    square.init_weights()
    assert torch.equal(again.pos_embed, oblong.pos_embed) and not torch.equal(square.pos_embed, oblong.pos_embed)
