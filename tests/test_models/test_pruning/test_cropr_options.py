"""The ablation options of the scorer against a reference, and what folding leaves of each of them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import cropr, det_sample, liven, small_vit, tokens_at

from cropr_mm import Context, CroprPruner

GRID, DIM, PREFIX, CLASSES = (3, 4), 8, 1, 3
OPTIONS = [
    dict(num_heads=heads, qkv_proj=proj, pre_norm=norm, mlp=mlp)
    for heads, proj, norm, mlp in itertools.product((1, 2, 4), (False, True), (False, True), (True, False))
]


def build(head='PatchSegAuxHead', **options):
    return liven(CroprPruner(DIM, GRID, 4, dict(type=head, num_classes=CLASSES), **options)).double()


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def reference(pruner, x, num_heads, qkv_proj, pre_norm, mlp):
    """Logits A, summed over queries and heads, and the prediction, head by head with explicit attention matrices."""
    x = norm(x, pruner.input_norm) if pre_norm else x
    q, k, v = pruner.queries, x, x
    if qkv_proj:
        q, k, v = linear(q, pruner.q_proj), linear(k, pruner.k_proj), linear(v, pruner.v_proj)
    width = DIM // num_heads
    scores, parts = 0, []
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        logits = torch.einsum('nd,bmd->bnm', q[:, part], k[..., part])
        scores = scores + logits.sum(1)
        parts.append((logits / math.sqrt(width)).softmax(-1) @ v[..., part])
    z = torch.cat(parts, -1)
    z = linear(z, pruner.proj) if qkv_proj else z
    if mlp:
        z = z + linear(F.gelu(linear(norm(z, pruner.norm), pruner.mlp.fc1)), pruner.mlp.fc2)
    return scores[:, PREFIX:], linear(norm(z, pruner.aux_head.norm), pruner.aux_head.fc)


@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '-'.join(map(str, o.values())))
def test_scores_and_prediction(options):
    pruner, x = build(**options), torch.randn(2, PREFIX + 12, DIM, dtype=torch.float64)
    index = torch.arange(12).expand(2, -1)
    scores, prediction = reference(pruner, x, **options)
    torch.testing.assert_close(pruner.predict(tokens_at(x, index)), prediction)
    # What every token has in common (key bias, norm bias) is left out of the score: it ranks nothing.
    ours = pruner.score(tokens_at(x[:, PREFIX:], index), Context(GRID)).double()
    torch.testing.assert_close(
        ours - ours.mean(1, keepdim=True), scores - scores.mean(1, keepdim=True), rtol=1e-4, atol=1e-4
    )
    pruner.switch_to_deploy()
    torch.testing.assert_close(pruner.score(tokens_at(x[:, PREFIX:], index), Context(GRID)).double(), ours)
    assert [name for name, _ in pruner.named_parameters()] == ['queries'] and pruner.queries.shape == (1, DIM)


@pytest.mark.parametrize('options', OPTIONS[::3], ids=lambda o: '-'.join(map(str, o.values())))
def test_every_parameter_learns(options):
    model = small_vit(pruning=dict(pruner=cropr(**options), rate=8)).train()
    model(torch.randn(2, 3, 24, 24))
    model.aux_losses([det_sample([0]), det_sample([1, 2])])['loss_aux'].backward()
    # A key's bias adds the same to every logit of a query, so softmax takes it out again.
    idle = {name for name, p in model.pruners.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-8}
    assert all(name.endswith('k_proj.bias') for name in idle)


@pytest.mark.parametrize('stop_gradient', [True, False])
def test_without_stop_gradient_the_auxiliary_loss_reaches_the_backbone(stop_gradient):
    model = small_vit(pruning=dict(pruner=cropr(stop_gradient=stop_gradient), rate=8)).train()
    model(torch.randn(2, 3, 24, 24))
    model.aux_losses([det_sample([0]), det_sample([1, 2])])['loss_aux'].backward()
    reached = {name.split('.')[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == ({'pruners'} if stop_gradient else {'pruners', 'blocks', 'patch_embed', 'cls_token', 'pos_embed'})


def test_reverse_keeps_what_the_scorer_thinks_least_of():
    options = dict(rate=8, round_to=1)
    upright = small_vit(pruning=dict(pruner=cropr(), **options)).eval()
    reverse = small_vit(pruning=dict(pruner=cropr(reverse=True), **options)).eval()
    reverse.load_state_dict(upright.state_dict())
    kept = []
    for model in (upright, reverse):
        model.prune_listeners.append(lambda block, stay, leave: kept.append(set(stay[0].tolist())))
        model(torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    best, worst = kept[0], kept[3]  # module 0 of both, before their ways part
    assert len(best) == len(worst) == 28 and set(range(36)) - best <= worst


@pytest.mark.parametrize('num_heads', [3, 0, -1, True, 2.0])
def test_heads_that_do_not_divide_the_channels_are_named(num_heads):
    with pytest.raises(ValueError, match=rf'pruner.num_heads={num_heads}; a divisor of 8 channels is expected'):
        build(num_heads=num_heads)


# --- checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('head', ['MultiLabelAuxHead', 'PatchSegAuxHead'])
@pytest.mark.parametrize('options', [{}, dict(num_heads=2, qkv_proj=True, pre_norm=True)], ids=['plain', 'all'])
def test_a_deploy_config_folds_the_weights_of_training_as_it_loads_them(head, options):
    pruning = dict(pruner=cropr(head, **options), rate=8)
    trained = small_vit(pruning=pruning).eval()
    deployed = small_vit(pruning=dict(pruning, deploy=True)).eval()
    deployed.load_state_dict(trained.state_dict(), strict=True)
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(deployed(images)[0].to_dense(), trained(images)[0].to_dense())


def test_folded_weights_are_refused_where_training_parts_are_wanted():
    pruning = dict(pruner=cropr(), rate=8)
    folded = small_vit(pruning=pruning)
    folded.switch_to_deploy()
    with pytest.raises(ValueError, match=r'pruners.0.queries: .*folded scorers.*pruning.deploy=True'):
        small_vit(pruning=pruning).load_state_dict(folded.state_dict())
