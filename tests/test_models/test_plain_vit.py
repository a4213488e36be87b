"""The dense CroprViT equals timm's models; the settings around it do what they say."""

import re

import pytest
import torch
from helpers import SMALL, cropr, det_sample, liven, small_vit
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmengine import ConfigDict
from mmengine.registry import MODELS
from parity import import_timm
from safetensors.torch import save_file

from cropr_mm import CroprViT
from cropr_mm.models.pruning import RandomPruner

TINY = dict(embed_dim=64, depth=3, num_heads=2)
DINOV2 = dict(TINY, family='dinov2')
DINOV3 = dict(TINY, family='dinov3')
PAIRS = {  # ours, timm's: (arch, patch size), (name, settings)
    'vit-tiny': (('vit-tiny', 16), ('vit_tiny_patch16_224', {})),
    'vit, pooled': ((dict(TINY), 16), ('vit_tiny_patch16_224', dict(TINY, global_pool='avg'))),
    'vit, no class token': (
        (dict(TINY, class_token=False), 16),
        ('vit_tiny_patch16_224', dict(TINY, class_token=False, global_pool='avg')),
    ),
    'vit, registers alone': (
        (dict(TINY, class_token=False, num_registers=4, layer_scale=1.0), 16),
        ('vit_medium_patch16_reg4_gap_256', TINY),
    ),
    'eva02-tiny': (('eva02-tiny', 14), ('eva02_tiny_patch14_224', {})),
    'eva02-base': ((dict(TINY, family='eva02'), 14), ('eva02_base_patch14_224', TINY)),
    'eva02-large': ((dict(TINY, family='eva02'), 14), ('eva02_large_patch14_224', TINY)),
    'eva02, CLIP': ((dict(TINY, family='eva02', attn_norm=True), 16), ('eva02_base_patch16_clip_224', TINY)),
    'dinov2': ((DINOV2, 14), ('vit_base_patch14_dinov2', TINY)),
    'dinov2-giant': (
        (dict(DINOV2, embed_dim=96, mlp='swiglu_packed', mlp_ratio=8 / 3), 14),
        ('vit_giant_patch14_dinov2', dict(TINY, embed_dim=96)),
    ),
    'dinov2-reg4': ((dict(DINOV2, num_registers=4), 14), ('vit_base_patch14_reg4_dinov2', TINY)),
    'dinov3': ((DINOV3, 16), ('vit_base_patch16_dinov3', TINY)),
    'dinov3, biases': ((DINOV3, 16), ('vit_small_patch16_dinov3_qkvb', TINY)),
    'dinov3-plus': ((dict(DINOV3, mlp='swiglu'), 16), ('vit_huge_plus_patch16_dinov3_qkvb', TINY)),
    'dinov3-7b': ((dict(DINOV3, mlp='swiglu', mlp_ratio=2.0), 16), ('vit_7b_patch16_dinov3', TINY)),
}


@pytest.fixture(scope='module')
def timm():
    return import_timm()


@pytest.fixture(params=PAIRS, scope='module')
def pair(request, timm, tmp_path_factory):
    """Our model and timm's, with the same lively weights, which went through a file."""
    (arch, patch), (name, settings) = PAIRS[request.param]
    torch.manual_seed(0)
    theirs = liven(timm.create_model(name, img_size=4 * patch, dynamic_img_size=True, num_classes=3, **settings))
    path = str(tmp_path_factory.mktemp('weights') / 'weights.safetensors')
    save_file(theirs.state_dict(), path)
    ours = CroprViT(arch, 4 * patch, patch, init_cfg=dict(type='Pretrained', checkpoint=path))
    ours.init_weights()
    return ours.eval(), theirs.eval(), patch


@pytest.mark.parametrize('grid', [(4, 4), (3, 5), (8, 2), (1, 1)])
def test_dense_model_equals_timms(pair, grid):
    ours, theirs, patch = pair
    images = torch.randn(2, 3, grid[0] * patch, grid[1] * patch)
    with torch.no_grad():
        expected = theirs.fc_norm(theirs.forward_features(images))
        (level,) = ours(images)
    assert expected.std() > 0.1  # two models that give nothing would be equal, too
    patches = expected[:, theirs.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
    assert (level.to_dense() - patches).abs().max() < 1e-4
    if theirs.num_prefix_tokens:
        assert (level.prefix - expected[:, : theirs.num_prefix_tokens]).abs().max() < 1e-4


def test_intermediate_levels_equal_timms(pair):
    ours, theirs, patch = pair
    images = torch.randn(1, 3, 3 * patch, 4 * patch)
    deep = CroprViT(ours.arch.__dict__, 4 * patch, patch, out_indices=(0, 1))
    deep.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
        levels = deep.eval()(images)
    for level, theirs_level in zip(levels, expected):
        assert (level.to_dense() - theirs_level).abs().max() < 1e-4


def test_gradients_equal_timms(pair):
    ours, theirs, patch = pair
    images = torch.randn(1, 3, 4 * patch, 4 * patch)
    ours.zero_grad(), theirs.zero_grad()
    theirs.fc_norm(theirs.forward_features(images))[:, theirs.num_prefix_tokens :].square().mean().backward()
    ours(images)[0].tokens.square().mean().backward()
    reference = {
        re.sub(r'gamma_([12])', r'ls\1.gamma', name.replace('fc_norm', 'norm')): parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    without_bias = 'blocks.0.attn.q_bias' not in reference  # DINOv3 as timm has it where all are zero
    for name, parameter in ours.named_parameters():
        if without_bias and name.endswith(('q_bias', 'v_bias')):
            continue
        torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-3, atol=1e-4, msg=name)


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', SMALL)
@pytest.mark.parametrize('height, width', [(24, 24), (23, 9), (1, 1), (1, 30), (40, 3)])
@pytest.mark.parametrize('pruning', [None, dict(pruner=cropr(), rate=6)], ids=['dense', 'pruned'])
def test_any_image_size_gives_its_grid(family, height, width, pruning):
    model = small_vit(family, pruning).eval()
    dense = model(torch.randn(2, 3, height, width))[0].to_dense()
    assert dense.shape == (2, 16, -(-height // 4), -(-width // 4)) and dense.isfinite().all()
    assert model.grid_of(height, width) == dense.shape[2:]


def test_padding_is_on_the_right_and_at_the_bottom():
    model = small_vit().eval()
    images = torch.zeros(1, 3, 24, 24)
    images[..., :22, :21] = torch.randn(1, 3, 22, 21)
    torch.testing.assert_close(model(images[..., :22, :21])[0].tokens, model(images)[0].tokens)


def test_a_training_grid_may_be_oblong():
    model = small_vit(img_size=(12, 24)).eval()
    assert model.grid == (3, 6) and model(torch.randn(1, 3, 12, 24))[0].to_dense().shape == (1, 16, 3, 6)


def test_other_numbers_of_channels_are_possible():
    assert small_vit(in_channels=5)(torch.randn(1, 5, 24, 24))[0].to_dense().shape == (1, 16, 6, 6)


def test_final_norm_can_be_left_out():
    plain, normed = small_vit(final_norm=False).eval(), small_vit().eval()
    normed.load_state_dict({**normed.state_dict(), **plain.state_dict()})
    images = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(normed.norm(plain(images)[0].tokens), normed(images)[0].tokens)


@pytest.mark.parametrize('pruner', [cropr(), dict(type='AttentionPruner')], ids=['cropr', 'attention'])
def test_recomputing_blocks_changes_no_gradient(pruner):
    """With drop path, whose noise must be the same both times."""
    settings = dict(pruning=dict(pruner=pruner, rate=8), drop_path_rate=0.5)
    stored, recomputed = small_vit(**settings), small_vit(with_cp=True, **settings)
    recomputed.load_state_dict(stored.state_dict())
    images, gradients = torch.randn(4, 3, 24, 24), []
    for model in (stored, recomputed):
        torch.manual_seed(0)
        model.train()(images)[0].to_dense().square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_recomputing_stores_less():
    def stored(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model.train()(torch.randn(4, 3, 24, 24))
        return sum(sizes)

    assert stored(small_vit(with_cp=True)) < 0.5 * stored(small_vit())


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 5])
def test_frozen_stages_get_no_gradient_and_no_drop_path(frozen_stages):
    pruning = dict(pruner=cropr(), rate=8)
    model = small_vit(frozen_stages=frozen_stages, drop_path_rate=0.5, pruning=pruning).eval().train()
    model(torch.randn(1, 3, 24, 24))[0].tokens.sum()
    frozen = {name.rsplit('.', 1)[0] for name, p in model.named_parameters() if not p.requires_grad}
    embedding = {'cls_token', 'pos_embed', 'patch_embed.proj'} if frozen_stages >= 0 else set()
    blocks = {n.rsplit('.', 1)[0] for n, _ in model.named_parameters() if n.startswith('blocks.')}
    blocks = {n for n in blocks if int(n.split('.')[1]) < frozen_stages}
    assert frozen == embedding | blocks | ({'norm'} if frozen_stages == 5 else set())
    assert [block.training for block in model.blocks] == [i >= frozen_stages for i in range(5)]
    assert model.pruners.training and all(p.requires_grad for p in model.pruners.parameters())


@pytest.mark.parametrize('pruning, last', [(None, 0.2), (dict(pruner=cropr(), rate=6), 0.0)])
def test_drop_path_grows_and_spares_the_fusing_block(pruning, last):
    rates = [block.drop_path.rate for block in small_vit(pruning=pruning, drop_path_rate=0.2).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, last])


@pytest.mark.parametrize('pruning, last', [(None, 0.4), (dict(pruner=cropr(), rate=6), 0.0)])
def test_drop_path_of_each_block(pruning, last):
    rates = [0.3, 0, 0.1, 0.2, 0.4]
    model = small_vit(pruning=pruning, drop_path_rate=rates)
    assert [block.drop_path.rate for block in model.blocks] == [*rates[:-1], last]


def test_it_builds_from_the_root_registry():
    pruning = ConfigDict(pruner=dict(type='RandomPruner'), rate=0.09)
    model = MODELS.build(ConfigDict(type='CroprViT', arch='vit-tiny', img_size=64, pruning=pruning))
    assert model.embed_dims == 192 and model.depth == 12 and isinstance(model.pruners['0'], RandomPruner)


@pytest.mark.parametrize('out_indices', [(0, 4), (-5, -1), [0, -1]])
def test_out_indices_count_from_both_ends(out_indices):
    assert small_vit(out_indices=out_indices).out_indices == (0, 4)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(out_indices=5), r'out_indices=5; .*0 to 4'),
        (dict(out_indices=(-6,)), r'out_indices=\(-6,\)'),
        (dict(out_indices=(3, 1)), r'out_indices=\(3, 1\); different ascending blocks'),
        (dict(out_indices=(1, 1)), r'out_indices=\(1, 1\)'),
        (dict(out_indices=()), r'out_indices=\(\)'),
        (dict(img_size=0), r'img_size=0; a positive integer'),
        (dict(img_size='24'), r"img_size='24'; a positive integer"),
        (dict(img_size=None), r'img_size=None; a positive integer'),
        (dict(img_size=(24, 24.0)), r'img_size=24.0; a positive integer'),
        (dict(img_size=True), r'img_size=True; a positive integer'),
        (dict(out_indices='last'), r"out_indices='last'; different ascending blocks"),
        (dict(out_indices=None), r'out_indices=None; different'),
        (dict(out_indices=(1, 2.0)), r'out_indices=\(1, 2.0\); different'),
        (dict(out_indices=True), r'out_indices=True; different'),
        (dict(in_channels=0), r'in_channels=0; a positive integer'),
        (dict(window_size='14'), r"window_size='14'; a positive integer"),
        (dict(window_size=2, global_blocks=['1']), r"global_blocks=\['1'\]; different"),
        (dict(drop_path_rate='0.1'), r"drop_path_rate='0.1'; a number of 0 or more and below 1"),
        (dict(drop_path_rate=None), r'drop_path_rate=None; a number of 0 or more'),
        (dict(drop_path_rate=float('nan')), r'drop_path_rate=nan; a number of 0 or more'),
        (dict(drop_path_rate=[0.1] * 4), r'drop_path_rate has 4 numbers; .* each of 5 blocks'),
        (dict(drop_path_rate=[0.1] * 4 + [1]), r'drop_path_rate\[4\]=1; a number of 0 or more and below 1'),
        (dict(drop_path_rate=False), r'drop_path_rate=False; a number of 0 or more'),
        (dict(with_cp='no'), r"with_cp='no'; True or False"),
        (dict(final_norm=None), r'final_norm=None; True or False'),
        (dict(frozen_stages=1.0), r'frozen_stages=1.0; an integer from -1 to 5'),
        (dict(frozen_stages=[1]), r'frozen_stages=\[1\]; an integer from -1 to 5'),
        (dict(arch=dict(mlp_ratio=0)), r'arch.mlp_ratio=0; a number above 0'),
        (dict(arch=dict(mlp_ratio='4')), r"arch.mlp_ratio='4'; a number above 0"),
        (dict(arch=dict(mlp_ratio=0.01)), r'arch.mlp_ratio=0.01; .* at least one hidden channel'),
        (dict(arch=dict(norm_eps=None)), r'arch.norm_eps=None; a number above 0'),
        (dict(arch=dict(class_token='yes')), r"arch.class_token='yes'; True or False"),
        (dict(arch={1: 2}), r'arch has unknown keys 1; valid are'),
        (dict(pruning=dict(pruner=cropr(), keep='{2: 0.3}')), r"keep='{2: 0.3}'; a dict .* pruning.keep.2=0.3"),
        (dict(pruning=dict(pruner=cropr(), keep={1: True})), r'pruning.keep={1: True}; ratios above 0'),
        (dict(pruning=dict(pruner=cropr(), rate=6, blocks=1)), r'pruning.blocks=1; different blocks from 0 to 2'),
        (dict(pruning=dict(pruner=cropr(), rate=6, blocks='01')), r"pruning.blocks='01'; different"),
        (dict(pruning=dict(pruner=cropr(), rate=6, blocks=[True])), r'pruning.blocks=\[True\]; different'),
        (dict(pruning=dict(pruner=cropr(), rate=6, round_to=True)), r'pruning.round_to=True; a positive'),
        (dict(pruning=dict(pruner=cropr(), rate=6, deploy='no')), r"pruning.deploy='no'; True or False"),
        (dict(pruning=dict(pruner=cropr(), rate=6, aux_recompute=1)), r'pruning.aux_recompute=1; True or False'),
        (dict(pruning=dict(pruner=cropr(), rate=6, aux_share=float('nan'))), r'pruning.aux_share=nan; a number'),
        (dict(pruning={'pruner': cropr(), 'rate': 6, 3: 1}), r'pruning has unknown keys 3; valid are'),
        (dict(img_size=(24, 24, 24)), r'img_size=\(24, 24, 24\); an integer or \(H, W\)'),
        (dict(patch_size=-4), r'patch_size=-4; a positive integer'),
        (dict(frozen_stages=6), r'frozen_stages=6; an integer from -1 to 5 is expected'),
        (dict(frozen_stages=-2), r'frozen_stages=-2; an integer from -1 to 5'),
        (dict(frozen_stages=True), r'frozen_stages=True; an integer from -1 to 5'),
        (dict(drop_path_rate=1.0), r'drop_path_rate=1.0; a number of 0 or more and below 1'),
        (dict(arch=dict(family='vgg')), r"arch.family='vgg' is unknown; valid are"),
        (dict(pruning='cropr'), r"pruning='cropr'; None or a dict with pruner and rate, target_ratio or keep"),
        (dict(pruning=dict(rate=6)), r"pruning={'rate': 6}; None or a dict with pruner"),
        (dict(pruning=dict(pruner='CroprPruner', rate=6)), r"pruning.pruner='CroprPruner'; a config with a type"),
        (dict(pruning=dict(pruner=cropr(), ratio=0.1)), r'pruning has unknown keys ratio; valid are pruner, rate'),
        (dict(pruning=dict(pruner=cropr(), rate=20)), r'pruning.rate=20 leaves -4 of 36 tokens after block 1'),
        (dict(pruning=dict(pruner=dict(type='CroprPruner', aux_head=None), rate=6)), r'pruner.aux_head=None; a config'),
        (dict(pruning=dict(pruner=cropr(num_classes=0), rate=6)), r'aux_head.num_classes=0; a positive integer'),
    ],
)
def test_errors_name_key_value_and_what_is_valid(settings, words):
    with pytest.raises(ValueError, match=words):
        small_vit(**settings)


def test_a_pruner_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r"pruning.pruner.type='ForeignModule' is neither a BasePruner"):
        small_vit(pruning=dict(pruner=dict(type='ForeignModule'), rate=6))


@MODELS.register_module()
class ForeignModule(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(-2, 2),
    st.sampled_from([float('nan'), float('inf'), -float('inf'), 10**30]),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-6, 6), st.floats(-2, 2), st.text(max_size=1), st.none()), max_size=3),
    st.dictionaries(st.one_of(st.integers(-1, 4), st.text(max_size=1), st.none()), st.floats(0, 1), max_size=2),
)
KEYS = dict(
    model=('patch_size', 'img_size', 'in_channels', 'out_indices', 'drop_path_rate', 'final_norm', 'window_size',
           'with_cp', 'frozen_stages', 'pruning', 'arch'),
    arch=('family', 'mlp_ratio', 'class_token', 'num_registers', 'position_embedding', 'rotary', 'rotary_ref', 'mlp',
          'sub_norm', 'attn_norm', 'qkv_fused', 'key_bias', 'layer_scale', 'norm_eps', 'embed_dim', 'depth',
          'num_heads'),
    pruning=('rate', 'target_ratio', 'keep', 'blocks', 'round_to', 'fusion', 'aux_share', 'aux_recompute', 'deploy',
             'pruner'),
)  # fmt: skip
SIZES = (
    'img_size',
    'patch_size',
    'in_channels',
    'num_registers',
    'embed_dim',
    'depth',
    'mlp_ratio',
)  # as large as somebody has memory


@settings(max_examples=600)
@given(st.sampled_from([(group, key) for group, keys in KEYS.items() for key in keys]), ANYTHING)
def test_any_value_builds_or_ends_in_an_error_that_names_its_key(place, value):
    group, key = place
    assume(not (key in SIZES and value == 10**30))
    arch, pruning, model = dict(SMALL['vit']), dict(pruner=dict(type='RandomPruner')), {}
    dict(arch=arch, pruning=pruning, model=model)[group][key] = value
    if group == 'pruning':
        if key not in ('rate', 'target_ratio', 'keep'):
            pruning['rate'] = 2
        model['pruning'] = pruning
    try:
        CroprViT(**{'arch': arch, 'img_size': 24, 'patch_size': 4, **model})
    except (ValueError, TypeError) as error:
        assert key in str(error), (error, value)


@pytest.mark.parametrize(
    'images, words',
    [
        (torch.zeros(3, 24, 24), r'CroprViT: images of shape \(3, 24, 24\); a batch \(B, 3, H, W\) is expected'),
        (torch.zeros(1, 4, 24, 24), r'images of shape \(1, 4, 24, 24\); a batch \(B, 3, H, W\)'),
        ([torch.zeros(3, 24, 24)], r'images of list; a batch'),
    ],
)
def test_images_that_are_no_batch_are_named(images, words):
    with pytest.raises(ValueError, match=words):
        small_vit()(images)


# --- outputs without the last block ---------------------------------------------------------------------------


@pytest.mark.parametrize('pruning', [None, dict(pruner=cropr(), rate=8, fusion=None, blocks=[0, 1])])
def test_no_block_after_the_last_output_is_computed_or_trained(pruning):
    model, whole = small_vit(out_indices=(1, 2), pruning=pruning), small_vit(out_indices=(1, 2, 4), pruning=pruning)
    whole.load_state_dict(model.state_dict())
    run = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: run.append(i))
    images = torch.randn(2, 3, 24, 24)
    for ours, expected in zip(model.eval()(images), whole.eval()(images)):
        assert torch.equal(ours.to_dense(), expected.to_dense())
    assert run == [0, 1, 2]
    levels = model.train()(images)
    aux = model.aux_losses([det_sample([0]), det_sample([1])]).get('loss_aux', 0)
    (sum(level.tokens.sum() for level in levels) + aux).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    idle = {name.split('.')[1] if name[0] == 'b' else name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {'3', '4', 'norm.weight', 'norm.bias'}


@pytest.mark.parametrize(
    'pruning, words',
    [
        (dict(rate=8), r'out_indices=-2 leaves out the last block, 4, in which the pruned tokens return; .*depth=4'),
        (dict(rate=8, fusion=None), r'out_indices=-2: nothing after block 3 .* pruning.blocks .* from 0 to 2'),
    ],
)
def test_pruning_needs_the_blocks_that_it_is_for(pruning, words):
    with pytest.raises(ValueError, match=words):
        small_vit(out_indices=-2, pruning=dict(pruner=cropr(), **pruning))


@pytest.mark.parametrize(
    'answer', [lambda position: position[:, :-1].float(), lambda position: 0.5, lambda position: position[0]]
)
def test_scores_of_another_shape_are_named(answer):
    class Own(RandomPruner):
        def score(self, tokens, context):
            return answer(tokens.position)

    model = small_vit(pruning=dict(pruner=dict(type=Own), rate=8))
    with pytest.raises(ValueError, match=r'Own.score returned .*; one score per patch token, \(B, M\) = \(2, 36\), is'):
        model(torch.randn(2, 3, 24, 24))
