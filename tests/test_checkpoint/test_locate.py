"""Where in a file a ViT is found, and the grid it was trained on."""

import argparse

import pytest
import torch
from helpers import cropr, small_vit
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.runner import save_checkpoint
from parity import import_timm
from safetensors.torch import save_file
from torch import nn

from cropr_mm.checkpoint import read_checkpoint, read_state_dict, read_weights


def vit(value):
    """A ViT's names, as far as finding it goes."""
    return {name: torch.full((2,), float(value)) for name in ('patch_embed.proj.weight', 'norm.weight')}


def under(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def write(content, path):
    save_file(content, path) if str(path).endswith('.safetensors') else torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    'content, place',
    [
        (vit(1), ''),
        ({'model': vit(1), 'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}}}, 'model.'),
        ({'module': under('module.', vit(1))}, 'module.module.'),
        ({'state_dict': under('backbone.', vit(1)), 'meta': {}}, 'state_dict.backbone.'),
        ({'state_dict': under('model.encoder.', vit(1))}, 'state_dict.model.encoder.'),
        ({'teacher': under('backbone.', vit(1)), 'student': under('backbone.', vit(0))}, 'teacher.backbone.'),
        ({'student': vit(0), 'teacher': vit(1)}, 'teacher.'),
        ({'model_ema': vit(0), 'model': vit(1)}, 'model.'),
        ({'ema_state_dict': under('module.', vit(0)), 'state_dict': vit(1)}, 'state_dict.'),
    ],
)
def test_the_patch_embedding_tells_where_the_names_begin(content, place, tmp_path):
    found = read_weights(write(content, tmp_path / 'w.pt'))
    assert found.place == place and found.state.keys() == vit(1).keys()
    assert all((value == 1).all() for value in found.state.values())


def test_openmmlabs_patch_embedding_tells_too(tmp_path):
    state = {'backbone.patch_embed.projection.weight': torch.ones(2), 'backbone.ln1.bias': torch.ones(2)}
    assert set(read_state_dict(write(state, tmp_path / 'w.safetensors'))) == {
        'patch_embed.projection.weight',
        'ln1.bias',
    }


def test_what_lies_elsewhere_is_counted_by_its_first_word(tmp_path):
    heads = {'decode_head.conv.weight': torch.ones(1), 'decode_head.conv.bias': torch.ones(1), 'neck.w': torch.ones(1)}
    content = {'state_dict': {**under('backbone.', vit(1)), **heads}}
    assert read_weights(write(content, tmp_path / 'w.pth')).elsewhere == ('decode_head (2)', 'neck (1)')


@pytest.mark.parametrize('prefix', ['student', 'student.', 'student.backbone.', 'student.backbone'])
def test_prefix_chooses_among_several(prefix, tmp_path):
    content = {'teacher': under('backbone.', vit(0)), 'student': under('backbone.', vit(1))}
    if prefix.startswith('student.b'):
        assert read_weights(write(content, tmp_path / 'w.pth'), prefix).place == 'student.backbone.'
    else:
        with pytest.raises(ValueError, match=r"prefix='student\.?' fits 0 .*'teacher.backbone.', 'student.backbone.'"):
            read_weights(write(content, tmp_path / 'w.pth'), prefix)


def test_prefix_is_taken_as_mmengine_takes_it(tmp_path):
    state = {**under('backbone.', vit(1)), **under('other.', vit(0))}
    path = write({'state_dict': state}, tmp_path / 'w.pth')
    assert read_weights(path, 'backbone').place == 'state_dict.backbone.'
    with pytest.raises(ValueError, match=r"several ViTs, at 'state_dict.backbone.', 'state_dict.other.'; choose"):
        read_weights(path)


@pytest.mark.parametrize(
    'outer, inner',
    [
        ('module.', ''),
        ('_orig_mod.', '_orig_mod.'),
        ('module._orig_mod.', '_orig_mod.'),
        ('_fsdp_wrapped_module.', '_fsdp_wrapped_module.'),
    ],
)
def test_what_wraps_a_model_or_a_part_of_it_is_stripped_at_every_door(outer, inner, tmp_path):
    """DDP, torch.compile and FSDP rename weights; the latter two wrap parts, too."""
    names = [f'{outer}backbone.{inner}{name}' for name in ('patch_embed.proj.weight', f'blocks.0.{inner}norm1.bias')]
    path = write({'state_dict': dict.fromkeys(names, torch.ones(2))}, tmp_path / 'w.pth')
    assert set(read_state_dict(path)) == {'patch_embed.proj.weight', 'blocks.0.norm1.bias'}
    assert set(read_checkpoint(path)[0]) == {'backbone.patch_embed.proj.weight', 'backbone.blocks.0.norm1.bias'}


def test_the_command_line_that_training_scripts_save_is_no_obstacle(tmp_path):
    content = {'model': vit(1), 'args': argparse.Namespace(lr=0.1, output='out'), 'epoch': 3}
    assert read_weights(write(content, tmp_path / 'w.pth')).place == 'model.'


class Unlisted:
    pass


def test_a_class_that_is_not_listed_is_named_and_not_called_damage(tmp_path):
    path = write({'state_dict': vit(1), 'extra': Unlisted()}, tmp_path / 'w.pth')
    with pytest.raises(
        ValueError, match=r'holds more than weights and plain data: \S*test_locate\.Unlisted, which is not on'
    ) as caught:
        read_state_dict(path)
    assert 'damaged' not in str(caught.value)


# --- init_cfg -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('as_list', [False, True])
def test_init_cfg_loads_from_its_prefix(as_list, tmp_path):
    teacher, student = small_vit().state_dict(), small_vit().state_dict()
    path = write({'teacher': teacher, 'student': student}, tmp_path / 'w.pth')
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='student.')
    model = small_vit(init_cfg=[init_cfg] if as_list else init_cfg)
    model.init_weights()
    assert all(torch.equal(value, student[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('kind', [PretrainedInit, 'mmengine.Pretrained', 'mmengine.model.weight_init.PretrainedInit'])
def test_pretrained_may_be_written_in_any_way_that_mmengine_takes(kind, tmp_path):
    """mmengine's own loading would find no name under ``model.module.`` and say so in the log alone."""
    state = small_vit().state_dict()
    path = write({'model': under('module.', state)}, tmp_path / 'w.pth')
    model = small_vit(init_cfg=dict(type=kind, checkpoint=path))
    model.init_weights()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_list_is_as_strict_as_a_dict(tmp_path):
    state = small_vit().state_dict()
    del state['norm.weight']
    model = small_vit(init_cfg=[dict(type='Pretrained', checkpoint=write(state, tmp_path / 'w.pth'))])
    with pytest.raises(ValueError, match=r'missing: norm.weight'):
        model.init_weights()


@pytest.mark.parametrize(
    'init_cfg, words',
    [
        (dict(type='Pretrained'), r"init_cfg={'type': 'Pretrained'}; type, checkpoint"),
        (dict(type='Pretrained', checkpoint='w.pth', revise_keys=[]), r'revise_keys.*; type, checkpoint .* and, if'),
        ([dict(type='Pretrained', checkpoint='w.pth'), dict(type='Normal', layer='Linear')], r'one entry is expected'),
    ],
)
def test_settings_that_are_not_understood_are_named(init_cfg, words):
    with pytest.raises(ValueError, match=words):
        small_vit(init_cfg=init_cfg).init_weights()


def test_the_checkpoint_of_a_pruned_training_starts_a_dense_model(tmp_path):
    class Segmentor(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = small_vit(pruning=dict(pruner=cropr(), rate=8), img_size=(12, 48))
            self.decode_head = nn.Linear(2, 2)

    trained = Segmentor()
    path = str(tmp_path / 'epoch_1.pth')
    save_checkpoint(dict(meta=dict(epoch=1), state_dict=trained.state_dict(), param_schedulers=[]), path)
    model = small_vit(img_size=(12, 48), init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.backbone.state_dict()[name]), name


# --- grids ----------------------------------------------------------------------------------------------------


def test_a_square_grid_is_resized_to_one_of_as_many_patches(tmp_path):
    """timm, which knows the grid that it was built with, is the other implementation."""
    timm = import_timm()
    settings = dict(patch_size=4, embed_dim=16, depth=5, num_heads=2, mlp_ratio=2.0, num_classes=0)
    square = timm.create_model('vit_tiny_patch16_224', img_size=24, **settings)
    oblong = timm.create_model('vit_tiny_patch16_224', img_size=(16, 36), **settings)
    path = write(square.state_dict(), tmp_path / 'w.pth')
    model = small_vit(img_size=(16, 36), init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    expected = timm.layers.resample_abs_pos_embed(square.pos_embed, [4, 9], [6, 6])
    assert expected.shape == oblong.pos_embed.shape == square.pos_embed.shape
    torch.testing.assert_close(model.pos_embed, expected)


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict': s}], ids=['plain', 'state_dict'])
@pytest.mark.parametrize('img_size, resized', [((16, 36), False), (24, True), ((36, 16), True)])
def test_an_oblong_grid_of_our_own_is_known_from_the_file(wrap, img_size, resized, tmp_path):
    timm = import_timm()
    trained = small_vit(img_size=(16, 36))
    path = write(wrap(trained.state_dict()), tmp_path / 'w.pth')
    model = small_vit(img_size=img_size, init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    expected = timm.layers.resample_abs_pos_embed(trained.pos_embed, list(model.grid), [4, 9])
    assert resized != torch.equal(model.pos_embed, trained.pos_embed)
    torch.testing.assert_close(model.pos_embed, expected)


def test_the_grid_outlives_mmengines_checkpoints(tmp_path):
    path = str(tmp_path / 'w.pth')
    model = nn.ModuleDict({'backbone': small_vit(img_size=(16, 36))})
    save_checkpoint(dict(state_dict=model.state_dict()), path)
    assert read_weights(path).grid == (4, 9)


def test_an_oblong_grid_of_unknown_shape_fits_its_own_alone(tmp_path):
    trained = small_vit(img_size=(12, 40))
    path = write(trained.state_dict(), tmp_path / 'w.safetensors')  # which keeps no metadata
    for img_size, fits in (((12, 40), True), (24, False)):
        model = small_vit(img_size=img_size, init_cfg=dict(type='Pretrained', checkpoint=path))
        if fits:
            model.init_weights()
            assert torch.equal(model.pos_embed, trained.pos_embed)
        else:
            with pytest.raises(ValueError, match=r'pos_embed \(1, 31, 16\) is neither a square grid nor 6×6 patches'):
                model.init_weights()


@pytest.mark.parametrize('img_size, warned', [((16, 64), True), (32, False), ((12, 40), False)])
def test_a_grid_that_may_be_two_is_said_to_be(img_size, warned, tmp_path, monkeypatch):
    """64 patches: 8 × 8, as all published weights have it, or 4 × 16."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', lines.append)
    path = write(small_vit(img_size=32).state_dict(), tmp_path / 'w.safetensors')
    small_vit(img_size=img_size, init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    assert len(lines) == warned and all('8×8 patches or of 4×16' in line for line in lines)


def test_resizing_is_logged(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'info', lines.append)
    path = write(small_vit().state_dict(), tmp_path / 'w.pth')
    small_vit(img_size=(40, 48), patch_size=8, init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    assert 'positional embedding resized from 6×6 to 5×6 patches' in lines[-1]
    assert 'patch embedding resized from 4×4 to 8×8 pixels' in lines[-1]
