"""One Cropr module against a brute-force reference, straight from the formulas of arXiv 2412.00965."""

import math

import pytest
import torch
from helpers import cropr, det_sample, liven, seg_sample, small_vit, tokens_at
from mmengine.utils import digit_version

from cropr_mm import Context, CroprPruner
from cropr_mm.models.pruning import cropr as cropr_module
from cropr_mm.models.pruning.cropr import _dot, sums_in_float32

GRID, DIM, PREFIX, CLASSES = (3, 4), 8, 1, 3


def build(head, **settings):
    pruner = CroprPruner(DIM, GRID, 4, dict(type=head, num_classes=CLASSES), **settings)
    return liven(pruner)


def norm(z, weight, bias):
    """LayerNorm, one vector at a time."""
    mean = z.sum() / len(z)
    variance = ((z - mean) ** 2).sum() / len(z)
    return (z - mean) / (variance + 1e-5).sqrt() * weight + bias


def reference(w, x):
    """Scores of the patch tokens and the auxiliary prediction for one sample.

    Args:
        w: the pruner's parameters by name, float64.
        x: (M, D) all tokens, prefix first.
    """
    queries = w['queries']
    logits = torch.stack([torch.stack([(q * token).sum() for token in x]) for q in queries])  # A (N, M)
    scores = torch.stack([sum(logits[n, m] for n in range(len(queries))) for m in range(PREFIX, len(x))])
    predictions = []
    for a in logits:
        share = (a / math.sqrt(DIM)).exp()
        z = sum(s * token for s, token in zip(share / share.sum(), x))
        hidden = w['mlp.fc1.weight'] @ norm(z, w['norm.weight'], w['norm.bias']) + w['mlp.fc1.bias']
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        z = z + w['mlp.fc2.weight'] @ hidden + w['mlp.fc2.bias']
        z = norm(z, w['aux_head.norm.weight'], w['aux_head.norm.bias'])
        predictions.append(w['aux_head.fc.weight'] @ z + w['aux_head.fc.bias'])
    return scores, torch.stack(predictions)


def reference_loss(head, logits, targets):
    """Cross-entropy per patch without label 255, or binary cross-entropy per class; mean."""
    terms = []
    for prediction, target in zip(logits, targets):
        if head == 'PatchSegAuxHead':
            for row, label in zip(prediction, target):
                if label != 255:
                    terms.append(row.exp().sum().log() - row[label])
        else:
            for c in range(CLASSES):
                p = 1 / (1 + (-prediction[0, c]).exp())
                terms.append(-(p if c in target else 1 - p).log())
    return sum(terms) / len(terms)


@pytest.fixture(params=['PatchSegAuxHead', 'MultiLabelAuxHead'])
def case(request):
    pruner = build(request.param)
    x = torch.randn(2, PREFIX + 12, DIM)
    if request.param == 'PatchSegAuxHead':
        targets = [[0, 1, 2, 255] * 3, [2] * 11 + [255]]
        samples = [
            seg_sample(torch.tensor(t).view(GRID).repeat_interleave(4, 0).repeat_interleave(4, 1)) for t in targets
        ]
    else:
        targets = [{0, 2}, {1}]
        samples = [det_sample([2, 0, 0]), det_sample([1])]
    weights = {k: p.detach().double().requires_grad_() for k, p in pruner.named_parameters()}
    return request.param, pruner, x, samples, targets, weights, [reference(weights, s.double()) for s in x]


def index_of(x):
    return torch.arange(12).expand(len(x), -1)


def test_scores(case):
    _, pruner, x, *_, expected = case
    scores = pruner.score(tokens_at(x[:, PREFIX:], index_of(x)), Context(GRID))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), torch.stack([s for s, _ in expected]), rtol=1e-5, atol=1e-5)


def test_kept_set(case):
    _, pruner, x, *_, expected = case
    kept, (pruned,) = pruner(tokens_at(x, index_of(x)), 5, Context(GRID))
    for b, (scores, _) in enumerate(expected):
        best = sorted(range(12), key=lambda i: -scores[i].item())
        assert set(kept.position[b].tolist()) == set(best[:7])
        assert set(pruned.position[b].tolist()) == set(best[7:])


def test_auxiliary_prediction(case):
    _, pruner, x, *_, expected = case
    torch.testing.assert_close(
        pruner.predict(tokens_at(x, index_of(x))).double(), torch.stack([p for _, p in expected]), rtol=1e-5, atol=1e-5
    )


def test_auxiliary_loss(case):
    head, pruner, x, samples, targets, _, expected = case
    loss = pruner.aux_loss(pruner.predict(tokens_at(x, index_of(x))), samples, GRID)
    torch.testing.assert_close(loss.double(), reference_loss(head, [p for _, p in expected], targets))


def test_gradients_of_queries_mlp_norms_and_head(case):
    head, pruner, x, samples, targets, weights, expected = case
    pruner.aux_loss(pruner.predict(tokens_at(x, index_of(x))), samples, GRID).backward()
    reference_loss(head, [p for _, p in expected], targets).backward()
    for name, parameter in pruner.named_parameters():
        assert weights[name].grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_parameters_carry_the_documented_names(case):
    head, pruner, *_ = case
    names = {name: tuple(p.shape) for name, p in pruner.named_parameters()}
    assert names == {
        'queries': (12 if head == 'PatchSegAuxHead' else 1, DIM),
        **{f'{layer}.{part}': (DIM,) for layer in ('norm', 'aux_head.norm') for part in ('weight', 'bias')},
        'mlp.fc1.weight': (32, DIM),
        'mlp.fc1.bias': (32,),
        'mlp.fc2.weight': (DIM, 32),
        'mlp.fc2.bias': (DIM,),
        'aux_head.fc.weight': (CLASSES, DIM),
        'aux_head.fc.bias': (CLASSES,),
    }


def test_queries_start_with_the_published_spread():
    queries = CroprPruner(256, (16, 16), 16, dict(type='PatchSegAuxHead', num_classes=2)).queries
    assert queries.std().item() == pytest.approx(256**-0.5, rel=0.05)


# --- who learns from what -------------------------------------------------------------------------------------


def model_and_losses(head, family='vit'):
    model = small_vit(family, dict(pruner=cropr(head), rate=8)).train()
    model.aux_is_read = True
    labels = torch.randint(3, (24, 24))
    samples = [det_sample([1])] * 2 if head == 'MultiLabelAuxHead' else [seg_sample(labels)] * 2
    main = model(torch.randn(2, 3, 24, 24))[0].tokens.square().mean()
    return model, main, model.aux_losses(samples)['loss_aux']


def touched(model):
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize('family', ['vit', 'eva02'])
@pytest.mark.parametrize('head', ['MultiLabelAuxHead', 'PatchSegAuxHead'])
def test_the_auxiliary_loss_teaches_the_pruners_alone(head, family):
    model, _, auxiliary = model_and_losses(head, family)
    auxiliary.backward()
    assert touched(model) == {name for name, _ in model.named_parameters() if name.startswith('pruners.')}


@pytest.mark.parametrize('head', ['MultiLabelAuxHead', 'PatchSegAuxHead'])
def test_the_main_loss_teaches_no_pruner(head):
    model, main, _ = model_and_losses(head)
    main.backward()
    assert touched(model) == {name for name, _ in model.named_parameters() if not name.startswith('pruners.')}


def test_each_module_has_its_own_loss_and_they_add_up():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8)).train()
    model(torch.randn(2, 3, 24, 24))
    losses = model.aux_losses([det_sample([0]), det_sample([1, 2])])
    assert set(losses) == {'loss_aux', 'aux.0', 'aux.1', 'aux.2'}
    torch.testing.assert_close(losses['loss_aux'], sum(losses[f'aux.{i}'] for i in range(3)))
    assert not any(losses[f'aux.{i}'].requires_grad for i in range(3))


def test_nothing_is_predicted_in_evaluation_or_without_gradients():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8))
    with torch.no_grad():
        model.train()(torch.randn(1, 3, 24, 24))
    assert model.aux_losses([]) == {}
    model.eval()(torch.randn(1, 3, 24, 24))
    assert model.aux_losses([]) == {}


# --- precision, deployment ----------------------------------------------------------------------------------


def test_scores_stay_float32_under_autocast():
    pruner, x = build('MultiLabelAuxHead'), torch.randn(2, 12, DIM)
    expected = pruner.score(tokens_at(x, index_of(x)), Context(GRID))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(pruner.score(tokens_at(x, index_of(x)), Context(GRID)), expected)
    assert pruner.score(tokens_at(x.bfloat16(), index_of(x)), Context(GRID)).dtype == torch.float32


@pytest.mark.parametrize('head', ['MultiLabelAuxHead', 'PatchSegAuxHead'])
@pytest.mark.parametrize('family', ['vit', 'eva02'])
def test_folding_the_queries_changes_no_output(head, family):
    model = small_vit(family, dict(pruner=cropr(head), rate=8)).eval()
    images = torch.randn(2, 3, 20, 24)
    before = model(images)[0].to_dense()
    model.switch_to_deploy()
    torch.testing.assert_close(model(images)[0].to_dense(), before)
    assert {name for name, _ in model.pruners['0'].named_parameters()} == {'queries'}
    assert model.pruners['0'].queries.shape == (1, 16)


@pytest.mark.parametrize('head', ['MultiLabelAuxHead', 'PatchSegAuxHead'])
def test_a_deploy_config_loads_folded_weights(head):
    pruning = dict(pruner=cropr(head), rate=8)
    model = small_vit(pruning=pruning).eval()
    model.switch_to_deploy()
    stripped = small_vit(pruning=dict(pruning, deploy=True)).eval()
    stripped.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(1, 3, 24, 24)
    assert torch.equal(stripped(images)[0].tokens, model(images)[0].tokens)


def test_folding_twice_is_folding_once():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8))
    model.switch_to_deploy()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.switch_to_deploy()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_folded_model_trains_without_auxiliary_losses():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8, deploy=True)).train()
    for _ in range(2):
        model(torch.randn(1, 3, 24, 24))[0].tokens.sum().backward()
    assert model.aux_losses([det_sample([0])]) == {}


@pytest.mark.parametrize('deploy', [False, True])
def test_sampling_draws_without_replacement_in_proportion_to_the_softmax_of_the_scores(deploy):
    """Two of three tokens: each order of them as often as drawing one after the other gives it."""
    pruner = build('MultiLabelAuxHead', sample=True)
    if deploy:
        pruner.switch_to_deploy()
    shares = torch.tensor([0.6, 0.3, 0.1])
    with torch.no_grad():
        pruner.queries.copy_(torch.eye(1, DIM))
    x = torch.zeros(20000, 3, DIM)
    x[:, :, 0] = shares.log()
    drawn = pruner.score(tokens_at(x, torch.arange(3).expand(20000, -1)), Context(GRID)).topk(2).indices
    for i in range(3):
        for j in {0, 1, 2} - {i}:
            expected = shares[i] * shares[j] / (1 - shares[i])
            found = ((drawn[:, 0] == i) & (drawn[:, 1] == j)).float().mean()
            assert abs(found - expected) < 5 * (expected * (1 - expected) / 20000) ** 0.5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('reverse', [False, True])
def test_half_precision_is_summed_in_float32_without_a_copy_where_the_device_can(monkeypatch, dtype, reverse):
    """On a stand-in for a device whose products of half precision can be had in float32."""
    pruner = build('MultiLabelAuxHead', reverse=reverse).to(dtype)
    x = torch.randn(2, PREFIX + 12, DIM, dtype=dtype)[:, PREFIX:]
    expected = pruner.score(tokens_at(x, index_of(x)), Context(GRID))
    product, seen = torch.bmm, []

    def bmm(a, b, out_dtype=None):
        seen.append((a.dtype, b.dtype, out_dtype, b.data_ptr()))
        return product(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(cropr_module, 'sums_in_float32', lambda device, dtype: True)
    monkeypatch.setattr(torch, 'bmm', bmm)
    assert torch.equal(pruner.score(tokens_at(x, index_of(x)), Context(GRID)), expected)
    assert seen == [(dtype, dtype, torch.float32, x.data_ptr())]


def test_half_precision_is_copied_to_float32_where_the_device_cannot():
    assert not sums_in_float32(torch.device('cpu'), torch.bfloat16)
    pruner, x = build('MultiLabelAuxHead').bfloat16(), torch.randn(2, 12, DIM).bfloat16()
    expected = x.double() @ pruner.queries[0].double()
    torch.testing.assert_close(
        pruner.score(tokens_at(x, index_of(x)), Context(GRID)).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.8'), reason='PyTorch 2.8 brought it')
def test_the_product_in_float32_is_one_that_torch_knows(monkeypatch):
    """Shapes and types alone, without a device that could compute it."""
    assert not sums_in_float32(torch.device('meta'), torch.bfloat16)  # as with fake tensors of a CPU
    monkeypatch.setattr(cropr_module, 'sums_in_float32', lambda device, dtype: True)
    x = torch.empty(2, PREFIX + 12, DIM, dtype=torch.bfloat16, device='meta')[:, PREFIX:]
    scores = _dot(torch.empty(1, DIM, dtype=torch.bfloat16, device='meta'), x)
    assert scores.dtype == torch.float32 and scores.shape == (2, 12)
