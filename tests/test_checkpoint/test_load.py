"""Pretrained weights arrive whole, or not at all and with a reason."""

import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL, cropr, small_vit
from mmengine.logging import MMLogger
from safetensors.torch import save_file

from cropr_mm import CroprViT, PlainViT
from cropr_mm.checkpoint import load_vit_weights, locate, read_state_dict


def weights_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(model, weights):
    for name, value in weights.items():
        assert torch.equal(model.state_dict()[name], value), name


def save(state, path):
    torch.save(state, path)
    return str(path)


@pytest.fixture
def log(monkeypatch):
    """What was logged, as one text."""
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'handle', lambda record: lines.append(record.getMessage()))
    return lambda: '\n'.join(lines)


@pytest.fixture
def weights():
    return weights_of(small_vit())


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: {'state_dict': w, 'meta': {'epoch': 3}},
        lambda w: {'model': w},
        lambda w: {f'module.{k}': v for k, v in w.items()},
        lambda w: {'state_dict': {**{f'backbone.{k}': v for k, v in w.items()}, 'decode_head.w': torch.zeros(1)}},
        lambda w: {**w, 'head.weight': torch.zeros(3, 16), 'mask_token': torch.zeros(1), 'rope.freqs': torch.zeros(2)},
    ],
    ids=['plain', 'state_dict', 'model', 'module.', 'backbone.', 'with a classifier'],
)
def test_weights_are_found_in_their_wrapping(weights, wrap, tmp_path):
    model = small_vit()
    load_vit_weights(model, save(wrap(weights), tmp_path / 'w.pth'))
    assert_same(model, weights)


def test_init_weights_loads_and_the_constructor_does_not(weights, tmp_path):
    path = str(tmp_path / 'w.safetensors')
    save_file(weights, path)
    model = small_vit(init_cfg=dict(type='Pretrained', checkpoint=path))
    assert not torch.equal(model.pos_embed, weights['pos_embed'])
    model.init_weights()
    assert_same(model, weights)


def test_without_a_checkpoint_init_weights_changes_nothing():
    model = small_vit()
    before = weights_of(model)
    model.init_weights()
    assert_same(model, before)


def test_dense_weights_go_into_a_pruned_model_whose_pruners_stay(weights, tmp_path):
    model = small_vit(pruning=dict(pruner=cropr(), rate=8))
    pruners = weights_of(model.pruners)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    assert_same(model, weights)
    assert_same(model.pruners, pruners)


def test_a_pruned_models_weights_come_back_with_their_pruners(tmp_path):
    pruning = dict(pruner=cropr(), rate=8)
    weights = weights_of(small_vit(pruning=pruning))
    model = small_vit(pruning=pruning)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    assert_same(model, weights)


def test_folded_weights_load_with_deploy(tmp_path):
    pruning = dict(pruner=cropr('PatchSegAuxHead'), rate=8)
    trained = small_vit(pruning=pruning)
    trained.switch_to_deploy()
    path = save(weights_of(trained), tmp_path / 'w.pth')
    model = small_vit(
        pruning=dict(pruning, deploy=True), init_cfg=dict(type='Pretrained', checkpoint=path), drop_path_rate=0.1
    )
    model.init_weights()
    assert_same(model, weights_of(trained))


def test_positions_are_resized_to_the_models_grid(weights, tmp_path):
    model = small_vit(img_size=(48, 12))
    weights['pos_embed'] = torch.cat([torch.full((1, 1, 16), 5.0), torch.full((1, 36, 16), 2.0)], dim=1)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    assert model.pos_embed.shape == (1, 1 + 12 * 3, 16)
    torch.testing.assert_close(model.pos_embed[:, 0], weights['pos_embed'][:, 0])
    torch.testing.assert_close(model.pos_embed[:, 1:], torch.full((1, 36, 16), 2.0))


def test_patch_embedding_answers_to_resized_patches_as_it_did(weights, tmp_path):
    model = small_vit(img_size=48, patch_size=8)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    patches = torch.randn(5, 3, 4, 4)
    larger = F.interpolate(patches, (8, 8), mode='bicubic', antialias=True)
    before = F.conv2d(patches, weights['patch_embed.proj.weight'])
    torch.testing.assert_close(F.conv2d(larger, model.patch_embed.proj.weight), before, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_mmengines_runner_is_read(weights, tmp_path):
    from mmengine.logging import MessageHub

    hub = MessageHub('test_load')
    hub.update_scalar('train/loss', 1.0)
    model = small_vit()
    load_vit_weights(model, save({'state_dict': weights, 'message_hub': hub.state_dict()}, tmp_path / 'w.pth'))
    assert_same(model, weights)


@pytest.mark.parametrize(
    'pruning',
    [
        None,
        dict(pruner=dict(type='RandomPruner'), rate=8),
        dict(pruner=cropr(num_classes=5), rate=8),
        dict(pruner=cropr(), rate=8),  # after more blocks than the file has pruners for
    ],
    ids=['dense', 'random', 'other classes', 'more pruners'],
)
def test_other_pruners_are_left_out_and_said_so(pruning, tmp_path, log):
    weights = weights_of(small_vit(pruning=dict(pruner=cropr(), rate=8, blocks=[0, 2])))
    model = small_vit(pruning=pruning)
    pruners = weights_of(model.pruners)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    assert_same(model, {name: value for name, value in weights.items() if not name.startswith('pruners.')})
    assert_same(model.pruners, pruners)
    assert "were left out, as they are not this model's (" in log()


def counted(weights):
    """As the first checkpoints of this package have them: pruners by their running number, and a list of blocks."""
    blocks = sorted({int(name.split('.')[1]) for name in weights if name.startswith('pruners.')})
    renamed = {
        re.sub(r'^pruners\.(\d+)', lambda m: f'pruners.{blocks.index(int(m[1]))}', name): value
        for name, value in weights.items()
    }
    return {**renamed, 'pruners.blocks': torch.tensor(blocks)}


@pytest.mark.parametrize('form', [dict, counted], ids=['by block', 'counted'])
def test_pruners_follow_their_blocks(form, tmp_path, log):
    weights = weights_of(small_vit(pruning=dict(pruner=cropr(), rate=8, blocks=[1, 2])))
    model = small_vit(pruning=dict(pruner=cropr(), rate=8, blocks=[2]))
    load_vit_weights(model, save(form(weights), tmp_path / 'w.pth'))
    assert torch.equal(model.pruners['2'].queries, weights['pruners.2.queries'])
    assert 'left out' not in log()


def test_a_list_of_blocks_that_is_too_short_is_refused(tmp_path):
    weights = counted(weights_of(small_vit(pruning=dict(pruner=cropr(), rate=8))))
    weights['pruners.blocks'] = torch.tensor(2)
    model = small_vit(pruning=dict(pruner=cropr(), rate=8))
    before = weights_of(model)
    with pytest.raises(ValueError, match=r'w.pth: pruners.blocks lists \[2\], fewer blocks than the checkpoint has'):
        load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    assert_same(model, before)
    with pytest.raises(ValueError, match=r'pruners.blocks lists \[2\], fewer'):
        model.load_state_dict(weights)


def test_a_dense_model_takes_a_pruned_ones_weights_in_either_form(tmp_path):
    weights = weights_of(small_vit(pruning=dict(pruner=cropr(), rate=8)))
    for form in (dict, counted):
        model = small_vit()
        load_vit_weights(model, save(form(weights), tmp_path / 'w.pth'))
        assert_same(model, {name: value for name, value in weights.items() if not name.startswith('pruners.')})
    plain = PlainViT(SMALL['vit'], 24, 4)
    load_vit_weights(plain, str(tmp_path / 'w.pth'))
    assert_same(plain, model.state_dict())


# --- what does not fit ----------------------------------------------------------------------------------------


def test_a_partial_match_lists_everything_and_changes_nothing(weights, tmp_path):
    missing, extra = 'blocks.3.attn.qkv.weight', 'blocks.7.norm1.weight'
    del weights[missing]
    weights[extra] = torch.zeros(16)
    weights['norm.bias'] = torch.zeros(7)
    model = small_vit()
    before = weights_of(model)
    path = save(weights, tmp_path / 'w.pth')
    words = [path, 'Arch', f'missing: {missing};', f'left over: {extra};', 'norm.bias (7,), expected (16,)']
    with pytest.raises(ValueError, match='.*'.join(map(re.escape, words))):
        load_vit_weights(model, path)
    assert_same(model, before)


def test_another_architecture_is_refused_with_a_short_list(tmp_path):
    path = save(weights_of(small_vit('eva02')), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'read as timm.* does not fit arch .* and \d+ more'):
        load_vit_weights(small_vit('vit', arch=dict(depth=9)), path)


def spoil_shapes(state, name):
    yield {**state, name: state[name][None]}
    yield {**state, name: state[name].flatten()[:-1]}
    yield {**state, name: state[name].new_zeros(())}
    yield {**state, name: torch.cat([state[name], state[name][:1]])}


@pytest.mark.parametrize('family', SMALL)
def test_every_weight_that_is_missing_or_misshapen_is_refused(family, tmp_path, monkeypatch):
    model = small_vit(family)
    path = save({}, tmp_path / 'w.pth')
    state, before = model.state_dict(), weights_of(model)
    for name in state:
        if name.startswith('blocks.') and not name.startswith('blocks.1.'):
            continue
        for spoilt in [{k: v for k, v in state.items() if k != name}, *spoil_shapes(state, name)]:
            monkeypatch.setattr(locate, 'load_address', lambda _, spoilt=spoilt: spoilt)  # many: not through the disk
            with pytest.raises(ValueError, match=r'w.pth: .*(does not fit|holds no plain ViT|neither a square grid)'):
                load_vit_weights(model, path)
    assert_same(model, before)


def test_positions_without_a_square_grid_are_named(weights, tmp_path):
    weights['pos_embed'] = torch.zeros(1, 31, 16)
    with pytest.raises(ValueError, match=r'pos_embed \(1, 31, 16\) is neither a square grid nor 6×6 patches'):
        load_vit_weights(small_vit(), save(weights, tmp_path / 'w.pth'))


def test_patch_weights_of_another_rank_are_of_another_shape(weights, tmp_path):
    weights['patch_embed.proj.weight'] = torch.zeros(16, 48)
    with pytest.raises(ValueError, match=r'patch_embed.proj.weight \(16, 48\), expected \(16, 3, 4, 4\)'):
        load_vit_weights(small_vit(), save(weights, tmp_path / 'w.pth'))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"init_cfg.checkpoint='/nowhere/w.pth'"):
        read_state_dict('/nowhere/w.pth')


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named_and_changes_nothing(weights, tmp_path, suffix, share):
    path = tmp_path / f'w.{suffix}'
    save_file(weights, str(path)) if suffix == 'safetensors' else torch.save(weights, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    model = small_vit()
    before = weights_of(model)
    with pytest.raises(ValueError, match=rf'w.{suffix}: cannot be read as a checkpoint; .*cut short'):
        load_vit_weights(model, str(path))
    assert_same(model, before)


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), 'w')


@pytest.mark.parametrize('write', [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_in_a_file_is_refused_and_not_run(weights, tmp_path, write):
    victim = tmp_path / 'victim'
    write({'state_dict': weights, 'extra': Malicious(victim)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'w.pth: cannot be read as a checkpoint; .*holds more than weights'):
        read_state_dict(str(tmp_path / 'w.pth'))
    assert not victim.exists()


@pytest.mark.parametrize('state', [{}, [], {'state_dict': {}}, {'epoch': 3}, torch.zeros(2)])
def test_a_file_without_weights_is_named(state, tmp_path):
    with pytest.raises(ValueError, match=r'w.pth: holds no weights'):
        read_state_dict(save(state, tmp_path / 'w.pth'))


def test_the_final_norm_is_not_missed_where_the_model_has_none(weights, tmp_path):
    model = CroprViT(dict(small_vit().arch.__dict__), 24, 4, final_norm=False)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    assert torch.equal(model.pos_embed, weights['pos_embed'])


def test_a_model_without_a_class_token_leaves_it_out_and_says_so(weights, tmp_path, log):
    model = small_vit(arch=dict(class_token=False), window_size=3)
    load_vit_weights(model, save(weights, tmp_path / 'w.pth'))
    expected = {name: value for name, value in weights.items() if name != 'cls_token'}
    assert_same(model, {**expected, 'pos_embed': weights['pos_embed'][:, 1:]})
    assert '[CLS] token left out, as the model has none' in log()


def detector_of_eva02(angles):
    """A model without a [CLS] token, and a file of EVA-02's detectors: angles of windows and of the whole grid."""
    weights = weights_of(small_vit('eva02'))
    state = {name: value for name, value in weights.items() if name != 'cls_token'}
    wrapped = {f'backbone.net.{name}': value for name, value in {**state, **angles}.items()}
    file = {'model': {**wrapped, 'backbone.simfp_2.0.weight': torch.zeros(1)}}
    return small_vit('eva02', arch=dict(class_token=False), window_size=3), state, file


def cosines(side):
    """(side ** 2, 8), of a grid scaled to 16 patches a side: for 8 channels per head two frequencies, 1 and 1 / 100."""
    along = torch.arange(side) / side * 16
    angles = (along[:, None] * torch.tensor([1.0, 0.01])).repeat_interleave(2, dim=-1)
    return torch.cat([angles.repeat_interleave(side, 0), angles.repeat(side, 1)], dim=-1).cos()


def test_the_position_of_a_class_token_that_is_no_more(tmp_path):
    """Detectors in detectron2 keep it."""
    angles = {'rope_win.freqs_cos': cosines(3), 'rope_glb.freqs_cos': cosines(6)}
    model, state, file = detector_of_eva02(angles)
    load_vit_weights(model, save(file, tmp_path / 'w.pth'), 'backbone.net.')
    assert_same(model, {**state, 'pos_embed': state['pos_embed'][:, 1:]})


@pytest.mark.parametrize('name, side', [('rope_win', 3), ('rope_glb', 6), ('blocks.1.attn.rope', 3)])
def test_every_table_of_angles_in_a_file_is_compared(name, side, tmp_path):
    model, _, file = detector_of_eva02({f'{name}.freqs_cos': cosines(side) * 0.5})
    with pytest.raises(ValueError, match=rf'its rotary angles are not those of this model \({name}.freqs_cos; arch'):
        load_vit_weights(model, save(file, tmp_path / 'w.pth'), 'backbone.net.')


def test_a_final_norm_that_the_model_has_not_is_left_out_and_said_so(weights, tmp_path, log):
    load_vit_weights(small_vit(final_norm=False), save(weights, tmp_path / 'w.pth'))
    assert 'final norm left out, as final_norm=False' in log()
    load_vit_weights(small_vit(), save(weights, tmp_path / 'w.pth'))
    assert log().count('final norm') == 1


def test_the_first_blocks_of_a_deeper_model(weights, tmp_path, log):
    path = save(weights, tmp_path / 'a.pth')
    size = dict(img_size=24, patch_size=4)
    model = PlainViT(dict(SMALL['vit'], depth=2), **size)
    before = weights_of(model)
    with pytest.raises(ValueError, match=r'left over: blocks\.2\.'):
        load_vit_weights(model, path)
    assert_same(model, before)
    load_vit_weights(model, path, first_blocks=True)
    assert 'the first 2 blocks alone' in log()
    assert_same(model, {name: value for name, value in weights.items() if name in before})
    with pytest.raises(ValueError, match=r"init_cfg\.first_blocks='yes'; True or False"):
        settings = dict(type='Pretrained', checkpoint=path, first_blocks='yes')
        PlainViT(dict(SMALL['vit'], depth=2), init_cfg=settings, **size).init_weights()
