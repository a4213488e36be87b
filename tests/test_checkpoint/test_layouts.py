"""Weights as other projects publish them give the outputs that they give there.

Where the original library cannot be installed, its names are written down here by hand, from its source, and timm's
own reader of that format is the judge.
"""

import copy
import re

import pytest
import torch
from helpers import liven
from parity import import_mmpretrain, import_timm
from safetensors.torch import save_file

from cropr_mm import CroprViT
from cropr_mm.checkpoint.layouts import convert

TINY = dict(embed_dim=48, depth=2, num_heads=2)


@pytest.fixture(scope='module')
def timm():
    return import_timm()


def write(content, path):
    path = str(path)
    if path.endswith('.safetensors'):
        save_file({name: value.clone() for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def ours(arch, patch, path, grid=(4, 4), **settings):
    init_cfg = dict(type='Pretrained', checkpoint=path, **settings.pop('init_cfg', {}))
    model = CroprViT(arch, (grid[0] * patch, grid[1] * patch), patch, init_cfg=init_cfg, **settings)
    model.init_weights()
    return model.eval()


def assert_same_maps(model, patch, expected_of, grid=(3, 5)):
    """expected_of(images) → patch tokens (B, N, D)."""
    images = torch.randn(2, 3, grid[0] * patch, grid[1] * patch)
    with torch.no_grad():
        (level,) = model(images)
        expected = expected_of(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(level.tokens, expected, rtol=1e-4, atol=1e-4)


def renamed(state, *rules):
    """A state dict with every name changed by the first rule that fits."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            new, count = re.subn(pattern, replacement, name)
            if count:
                name = new
                break
        result[name] = value
    return result


# --- the originals' names, from timm's ------------------------------------------------------------------------


def mae(state):
    width = state['cls_token'].shape[2]
    decoder = ('mask_token', 'decoder_pos_embed', 'decoder_embed.weight', 'decoder_blocks.0.norm1.weight')
    return {'model': {**state, **{name: torch.randn(1, 1, width) for name in (*decoder, 'decoder_pred.bias')}}}


def deit(state):
    return {'model': {**state, 'head.weight': torch.randn(3, 48), 'head.bias': torch.randn(3)}}


def deit3(state):
    return {'model': renamed(state, (r'ls([12])\.gamma', r'gamma_\1'))}


def eva02_angles(timm):
    """Sine and cosine (16, 24) as EVA-02 has them for its 24 channels per head on a grid of 4 × 4."""
    rope = timm.layers.RotaryEmbeddingCat(24, in_pixels=False, feat_shape=[4, 4], ref_feat_shape=[16, 16])
    return rope.get_embed().chunk(2, dim=-1)


def eva02_extras(state):
    sine, cosine = eva02_angles(import_timm())
    angles = {'rope.freqs_cos': cosine.view(4, 4, 24).half(), 'rope.freqs_sin': sine.view(4, 4, 24).half()}
    angles.update({f'blocks.{i}.attn.{k}': v for i in range(2) for k, v in angles.copy().items()})
    head = {'mask_token': torch.randn(1, 1, 48), 'lm_head.weight': torch.randn(7, 48), 'lm_head.bias': torch.randn(7)}
    return {**renamed(state, (r'fc_norm', 'norm')), **angles, **head}


def eva02_large(state):
    state = renamed(
        state,
        (r'mlp\.fc1_g', 'mlp.w1'),
        (r'mlp\.fc1_x', 'mlp.w2'),
        (r'mlp\.fc2', 'mlp.w3'),
        (r'mlp\.norm', 'mlp.ffn_ln'),
        (r'([qv])_proj\.bias', r'\1_bias'),
    )
    return {'module': eva02_extras(state)}


def eva02_small(state):
    return {'model': eva02_extras(renamed(state, (r'mlp\.fc1', 'mlp.w12'), (r'mlp\.fc2', 'mlp.w3')))}


def dinov2(state):
    return {**state, 'mask_token': torch.zeros(1, 48)}


def dinov2_registers(state):
    state = dict(state)
    of_class = torch.randn(1, 1, 48)  # timm adds the [CLS] token's position to the token itself
    state['register_tokens'] = state.pop('reg_token')
    state['cls_token'] = state['cls_token'] - of_class
    state['pos_embed'] = torch.cat([of_class, state['pos_embed']], dim=1)
    return {**state, 'mask_token': torch.zeros(1, 48)}


def dinov2_giant(state):
    return dinov2(renamed(state, (r'mlp\.fc1', 'mlp.w12'), (r'mlp\.fc2', 'mlp.w3')))


def dinov3(state):
    state = renamed(
        state,
        (r'gamma_([12])', r'ls\1.gamma'),
        (r'reg_token', 'storage_tokens'),
        (r'mlp\.fc1_g', 'mlp.w1'),
        (r'mlp\.fc1_x', 'mlp.w2'),
        (r'mlp\.fc2', 'mlp.w3') if 'blocks.0.mlp.fc1_g.weight' in state else (r'^$', ''),
    )
    for i in range(2):
        place = f'blocks.{i}.attn.'
        if f'{place}q_bias' in state:  # the key's part is masked, whatever it holds
            query, value = state.pop(f'{place}q_bias'), state.pop(f'{place}v_bias')
            state[f'{place}qkv.bias'] = torch.cat([query, torch.randn(48), value])
            ones = torch.ones(48)
            state[f'{place}qkv.bias_mask'] = torch.cat([ones, ones * float('nan') if i else ones * 0, ones])
    periods = {'rope_embed.periods': (100.0 ** (torch.arange(6) / 6)).bfloat16()}
    norm = {f'local_cls_norm.{kind}': torch.randn(48) for kind in ('weight', 'bias')}
    return {**state, **periods, **norm, 'mask_token': torch.zeros(1, 48)}


# our architecture, timm's model and settings, the original's file
CASES = {
    'MAE': (dict(TINY), 'vit_base_patch16_224', {}, mae),
    'DeiT': (dict(TINY), 'vit_small_patch16_224', {}, deit),
    'DeiT III': (dict(TINY, layer_scale=1e-6), 'deit3_small_patch16_224', {}, deit3),
    'EVA-02 L': (dict(TINY, family='eva02'), 'eva02_large_patch14_224', {}, eva02_large),
    'EVA-02 S': (
        dict(TINY, family='eva02', mlp='swiglu_packed', sub_norm=False, qkv_fused=True),
        'eva02_small_patch14_224',
        {},
        eva02_small,
    ),
    'DINOv2': (dict(TINY, family='dinov2'), 'vit_base_patch14_dinov2', {}, dinov2),
    'DINOv2, registers': (
        dict(TINY, family='dinov2', num_registers=4),
        'vit_base_patch14_reg4_dinov2',
        {},
        dinov2_registers,
    ),
    'DINOv2 g': (
        dict(TINY, family='dinov2', mlp='swiglu_packed', mlp_ratio=8 / 3),
        'vit_giant_patch14_dinov2',
        {},
        dinov2_giant,
    ),
    'DINOv3': (dict(TINY, family='dinov3'), 'vit_base_patch16_dinov3_qkvb', {}, dinov3),
    'DINOv3 S+': (
        dict(TINY, family='dinov3', mlp='swiglu'),
        'vit_small_plus_patch16_dinov3_qkvb',
        {},
        dinov3,
    ),
    'DINOv3 7B': (
        dict(TINY, family='dinov3', mlp='swiglu', mlp_ratio=2.0),
        'vit_7b_patch16_dinov3',
        dict(swiglu_align_to=8),
        dinov3,
    ),
}


def judge(timm, name, settings, content, **size):
    """timm's model with the weights that timm itself reads from a file of the original."""
    model = timm.create_model(name, **{'num_classes': 0, 'dynamic_img_size': True, **TINY, **settings, **size})
    module = timm.models.eva if type(model).__name__ == 'Eva' else timm.models.vision_transformer
    extra = dict(adapt_layer_scale=True) if name.startswith('deit3') else {}
    result = model.load_state_dict(module.checkpoint_filter_fn(copy.deepcopy(content), model, **extra), strict=False)
    assert not result.missing_keys
    return model.eval()


def patch_tokens(model):
    return lambda images: model.fc_norm(model.forward_features(images))[:, model.num_prefix_tokens :]


@pytest.fixture(params=CASES, scope='module')
def case(request, timm):
    """Our architecture, patch size, timm's name and settings, and the content of a file of the original."""
    arch, name, settings, original = CASES[request.param]
    torch.manual_seed(0)
    patch = int(re.search(r'patch(\d+)', name)[1])
    source = timm.create_model(name, img_size=4 * patch, num_classes=0, **TINY, **settings)
    return arch, patch, name, settings, original(liven(source).state_dict())


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_original_files_give_what_timm_makes_of_them(case, timm, suffix, tmp_path):
    arch, patch, name, settings, content = case
    theirs = judge(timm, name, settings, content, img_size=4 * patch)
    flat = next((v for k, v in content.items() if k in ('model', 'module')), content)
    path = write(flat if suffix == 'safetensors' else content, tmp_path / f'w.{suffix}')
    assert_same_maps(ours(arch, patch, path), patch, patch_tokens(theirs))


def test_original_files_are_resized_as_timm_does(case, timm, tmp_path):
    arch, patch, name, settings, content = case
    new = {14: 16, 16: 14}[patch]
    size = dict(img_size=(3 * new, 5 * new), patch_size=new)
    theirs = judge(timm, name, settings, content, **size)
    model = ours(arch, new, write(content, tmp_path / 'w.bin'), grid=(3, 5))
    assert_same_maps(model, new, patch_tokens(theirs))


def test_blocks_chunked_by_dinov2s_training_are_counted_through(timm, tmp_path):
    source = liven(timm.create_model('vit_base_patch14_dinov2', img_size=56, num_classes=0, **dict(TINY, depth=4)))
    chunked = renamed(dinov2(source.state_dict()), (r'^blocks\.([01])\.', r'blocks.0.\1.'), (r'^blocks\.', 'blocks.1.'))
    teacher = {f'backbone.{k}': v for k, v in chunked.items()}
    content = {'teacher': {**teacher, 'dino_head.mlp.0.weight': torch.zeros(3, 48)}}
    model = ours(dict(TINY, family='dinov2', depth=4), 14, write(content, tmp_path / 'w.pth'))
    assert_same_maps(model, 14, patch_tokens(source.eval()), grid=(4, 4))


def test_a_distilled_deits_second_token_is_a_register(timm, tmp_path):
    source = timm.create_model('deit_tiny_distilled_patch16_224', img_size=64, **TINY, num_classes=3)
    path = write({'model': liven(source).state_dict()}, tmp_path / 'w.pth')
    model = ours(dict(TINY, num_registers=1), 16, path)
    expected = lambda images: source.eval().forward_features(images)[:, 2:]  # noqa: E731
    assert_same_maps(model, 16, expected, grid=(4, 4))
    with pytest.raises(ValueError, match=r'left over: reg_token.*\. Perhaps: arch.num_registers=1'):
        ours(dict(TINY), 16, path)


# --- OpenMMLab's own models -----------------------------------------------------------------------------------


def saved_by_runner(model, path):
    state = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    return write({'meta': {'epoch': 1}, 'state_dict': {**state, 'decode_head.conv_seg.weight': torch.ones(2)}}, path)


def alive(model):
    liven(model).eval()  # the mm libraries' eval() returns nothing
    return model


MMSEG = dict(img_size=64, embed_dims=48, num_layers=2, num_heads=2, norm_cfg=dict(type='LN', eps=1e-6))


@pytest.mark.parametrize('final_norm, patch_bias', [(True, True), (False, False)])
def test_mmsegmentations_vit(final_norm, patch_bias, tmp_path):
    backbones = pytest.importorskip('mmseg.models.backbones')
    source = alive(backbones.VisionTransformer(**MMSEG, final_norm=final_norm, patch_bias=patch_bias))
    path = saved_by_runner(source, tmp_path / 'w.pth')
    model = ours(dict(TINY), 16, path, final_norm=final_norm)
    # mmsegmentation resizes positions without antialiasing, so only its own grid can be compared.
    assert_same_maps(model, 16, lambda images: source(images)[0].flatten(2).transpose(1, 2), grid=(4, 4))
    if not final_norm:
        with pytest.raises(ValueError, match=r'missing: norm.weight, norm.bias\). Perhaps: final_norm=False'):
            ours(dict(TINY), 16, path)


@pytest.mark.parametrize('kind', ['MAE', 'BEiT'])
def test_mmsegmentations_mae_and_beit_without_relative_positions(kind, tmp_path):
    backbones = pytest.importorskip('mmseg.models.backbones')
    source = alive(getattr(backbones, kind)(**MMSEG, final_norm=True))
    arch = dict(TINY, layer_scale=0.1, position_embedding=kind == 'MAE', key_bias=kind == 'MAE')
    path = saved_by_runner(source, tmp_path / 'with.pth')
    with pytest.raises(ValueError, match=r'left over: blocks.0.attn.relative_position_bias_table, blocks.1'):
        ours(arch, 16, path)
    for layer in source.layers:  # as MAE begins with
        torch.nn.init.zeros_(layer.attn.relative_position_bias_table)
    model = ours(arch, 16, saved_by_runner(source, tmp_path / 'without.pth'))
    assert_same_maps(model, 16, lambda images: source(images)[0].flatten(2).transpose(1, 2), grid=(4, 4))


def mmpretrains(name, **settings):
    mmpretrain = import_mmpretrain()
    hidden = settings.pop('hidden', 4 * 48)
    arch = dict(embed_dims=48, num_layers=2, num_heads=2, feedforward_channels=hidden)
    norm = dict(type='LN', eps=1e-6)
    return alive(getattr(mmpretrain.models, name)(arch=arch, img_size=64, out_type='raw', norm_cfg=norm, **settings))


@pytest.mark.parametrize(
    'settings, arch',
    [
        ({}, dict(TINY)),
        (dict(layer_scale_init_value=0.1), dict(TINY, family='dinov2')),
        (
            dict(layer_scale_init_value=0.1, layer_cfgs=dict(ffn_type='swiglu_fused')),
            dict(TINY, family='dinov2', mlp='swiglu_packed', mlp_ratio=8 / 3),
        ),
        (dict(final_norm=False), dict(TINY)),
    ],
    ids=['plain', 'layer scale', 'SwiGLU', 'no final norm'],
)
def test_mmpretrains_vit(settings, arch, tmp_path):
    source = mmpretrains('VisionTransformer', **settings)
    path = saved_by_runner(source, tmp_path / 'w.pth')
    model = ours(arch, 16, path, final_norm=settings.get('final_norm', True))
    assert_same_maps(model, 16, lambda images: source(images)[0][:, 1:], grid=(4, 4))


def test_mmpretrains_distilled_deit(tmp_path):
    source = mmpretrains('DistilledVisionTransformer')
    model = ours(dict(TINY, num_registers=1), 16, saved_by_runner(source, tmp_path / 'w.pth'))
    assert_same_maps(model, 16, lambda images: source(images)[0][:, 2:], grid=(4, 4))


@pytest.mark.parametrize('size', ['small', 'large'])
def test_mmpretrains_eva02(size, timm, tmp_path):
    large = size == 'large'
    source = mmpretrains('ViTEVA02', hidden=int(48 * 8 / 3), sub_ln=large)
    arch = dict(TINY, family='eva02')
    if not large:
        arch.update(mlp='swiglu_packed', sub_norm=False, qkv_fused=True)
    with torch.no_grad():
        for layer in source.layers:
            layer.attn.qkv.bias[48:96] = 0  # as converted from the original, whose keys have no bias
    with pytest.raises(ValueError, match='its rotary angles are not those of this model'):
        ours(arch, 16, saved_by_runner(source, tmp_path / 'own.pth'))
    # Published files bring the original's angles along; the class's own formula gives others.
    source.rope.freqs_sin, source.rope.freqs_cos = eva02_angles(timm)
    model = ours(arch, 16, saved_by_runner(source, tmp_path / 'w.pth'))
    assert_same_maps(model, 16, lambda images: source(images)[0][:, 1:], grid=(4, 4))


@pytest.mark.parametrize(
    'angles, family',
    [
        ({'rope.freqs_cos': torch.ones(16, 24)}, 'vit'),  # a model without rotary positions
        ({'rope.freqs_cos': torch.ones(16, 24)}, 'eva02'),
        ({'rope_embed.periods': 10000.0 ** (torch.arange(6) / 6)}, 'dinov3'),
        ({'rope_embed.periods': 100.0 ** (torch.arange(6) / 6)}, 'eva02'),
    ],
)
def test_other_rotary_angles_are_refused(angles, family, tmp_path):
    arch = dict(TINY, family=family)
    state = CroprViT(arch, 64, 16).state_dict()
    ours(arch, 16, write(state, tmp_path / 'without.pth'))
    with pytest.raises(ValueError, match='its rotary angles are not those of this model'):
        ours(arch, 16, write({**state, **angles}, tmp_path / 'with.pth'))


# --- unknown ones ---------------------------------------------------------------------------------------------


def test_an_unknown_layout_is_named_with_those_known(tmp_path):
    path = write(
        {'patch_embed.proj.weight': torch.zeros(48, 3, 16, 16), 'stages.0.conv': torch.ones(2)}, tmp_path / 'w.pth'
    )
    with pytest.raises(
        ValueError, match=r'w.pth: is in no layout that is known \(DINOv3, .*; its names are patch_embed'
    ):
        ours(dict(TINY), 16, path)


def test_files_of_no_vit_are_named(tmp_path):
    path = write({'encoder.layer.0.attention.query.weight': torch.zeros(2)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'holds no plain ViT in a layout that is known .* encoder.layer.0.attention'):
        ours(dict(TINY), 16, path)


def test_what_is_converted_keeps_its_values(timm):
    state = timm.create_model('vit_tiny_patch16_224', **TINY, num_classes=0).state_dict()
    converted, layout = convert(state)
    assert layout == 'timm, MAE, DeiT' and converted.keys() == state.keys()
    assert all(converted[name] is state[name] for name in state)
