"""The difficulty scorer against a reference that goes token by token."""

import math

import pytest
import torch
from helpers import liven, seg_sample, small_vit, tokens_at
from mmengine.structures import BaseDataElement, InstanceData

from cropr_mm import Context, CroprPruner, DifficultyPruner
from cropr_mm.models.pruning.difficulty import TokenPrediction

GRID, DIM, PREFIX, CLASSES, PATCH = (3, 4), 8, 1, 3, 4
PRUNER = dict(type='DifficultyPruner', num_classes=CLASSES)


def build(**settings):
    return liven(DifficultyPruner(DIM, GRID, PATCH, CLASSES, **settings))


def reference(w, x, index, shares):
    """Sum of the class losses, and loss of the attention, of one sample.

    Args:
        w: parameters by name, float64.
        x: (N, D) patch tokens; index: their raster positions; shares: (H * W, C + 1).
    """
    scores, difficulty = [], []
    for token, position in zip(x, index.tolist()):
        scores.append((w['queries'][0] * token).sum())
        z = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
        z = z * w['aux_head.norm.weight'] + w['aux_head.norm.bias']
        logits = w['aux_head.fc.weight'] @ z + w['aux_head.fc.bias']
        log_p = logits - logits.exp().sum().log()
        difficulty.append(-(shares[position].double() * log_p).sum())
    attention = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
    c = torch.stack(difficulty)
    wanted = c.detach() / c.detach().sum()
    return c.sum(), -(wanted * attention.log()).sum()


def shares_of(label):
    shares = torch.zeros(12, CLASSES + 1)
    for row in range(12):
        for column in range(16):
            if label[row, column] != 255:
                shares[row // PATCH * 4 + column // PATCH, label[row, column]] += 1 / PATCH**2
    return shares


@pytest.fixture
def case():
    pruner = build()
    labels = [torch.randint(CLASSES, (12, 16)) for _ in range(2)]
    labels[0][:5, :6] = 255
    # Seven of the twelve tokens are still there, each sample's its own, in any order.
    index = torch.stack([torch.randperm(12)[:7] for _ in labels])
    x = torch.randn(2, PREFIX + 7, DIM)
    weights = {k: p.detach().double().requires_grad_() for k, p in pruner.named_parameters()}
    shares = [shares_of(label) for label in labels]
    terms = [reference(weights, s[PREFIX:].double(), i, h) for s, i, h in zip(x, index, shares)]
    labelled = sum(h[i].sum() for h, i in zip(shares, index))
    expected = sum(c for c, _ in terms) / labelled + sum(a for _, a in terms) / 2
    return pruner, x, index, [seg_sample(label) for label in labels], weights, expected


def test_loss_and_gradients(case):
    pruner, x, index, samples, weights, expected = case
    x.requires_grad_()
    loss = pruner.aux_loss(pruner.predict(tokens_at(x, index)), samples, GRID)
    torch.testing.assert_close(loss.double(), expected)
    loss.backward()
    expected.backward()
    for name, parameter in pruner.named_parameters():
        assert weights[name].grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-6, msg=name)
    assert x.grad is None


def test_the_scores_that_learn_are_those_that_select(case):
    pruner, x, index, *_ = case
    scores = pruner.predict(tokens_at(x, index)).scores
    torch.testing.assert_close(scores, pruner.score(tokens_at(x[:, PREFIX:], index), Context(GRID)))
    torch.testing.assert_close(
        pruner.predict(tokens_at(x[:, PREFIX:], index)).scores, scores
    )  # a model without a [CLS] token


def test_attention_that_follows_the_difficulty_is_the_optimum(case):
    """No step of the scores in any direction lowers the loss there."""
    pruner, _, index, samples, *_ = case
    logits = torch.randn(2, 7, CLASSES + 1)
    shares = torch.stack([shares_of(s.gt_sem_seg.data[0])[i] for s, i in zip(samples, index)])
    difficulty = -(shares * logits.log_softmax(-1)).sum(-1)
    scores = difficulty.log().requires_grad_()
    pruner.aux_loss(TokenPrediction(scores, logits, index), samples, GRID).backward()
    torch.testing.assert_close(scores.grad, torch.zeros_like(scores), atol=1e-6, rtol=0)


def test_the_scorer_finds_the_tokens_that_a_linear_layer_cannot_name():
    """Channel 0 says background or object; which object it is no channel says. Objects must come to the top."""
    torch.manual_seed(0)
    pruner = DifficultyPruner(DIM, GRID, PATCH, CLASSES)
    optimizer = torch.optim.AdamW(pruner.parameters(), lr=2e-2)
    for _ in range(150):
        classes = torch.randint(CLASSES, (8, 12))
        classes[torch.rand(8, 12) < 0.6] = 0
        x, samples = tokens_of(classes)
        optimizer.zero_grad()
        pruner.aux_loss(pruner.predict(tokens_at(x, torch.arange(12).expand(8, -1))), samples, GRID).backward()
        optimizer.step()
    classes = torch.tensor([[0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 2]])
    x, _ = tokens_of(classes)
    order = pruner.score(tokens_at(x, torch.arange(12)[None]), Context(GRID)).argsort(descending=True)[0]
    assert set(order[:4].tolist()) == {2, 4, 8, 11}


def tokens_of(classes):
    x = torch.randn(*classes.shape, DIM)
    x[..., 0] = torch.where(classes > 0, 2.0, -2.0)
    labels = classes.view(-1, *GRID).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    return x, [seg_sample(label) for label in labels]


def test_boxes_name_the_tokens_too():
    instances = InstanceData(bboxes=torch.tensor([[0.0, 0, 8, 4]]), labels=torch.tensor([2]))
    sample = BaseDataElement(gt_instances=instances)
    named = torch.full((12,), CLASSES)
    named[:2] = 2  # the box's two patches; background elsewhere
    certain = 30.0 * torch.nn.functional.one_hot(named, CLASSES + 1)
    certain[5] = 0  # one background token that could be anything: all of the difficulty
    scores = torch.zeros(1, 12, requires_grad=True)
    prediction = TokenPrediction(scores, certain[None], torch.arange(12)[None])
    loss = build().aux_loss(prediction, [sample], GRID)
    assert loss.item() == pytest.approx(math.log(CLASSES + 1) / 12 + math.log(12), abs=1e-4)
    loss.backward()
    assert scores.grad[0].argmin() == 5 and (scores.grad[0] < 0).sum() == 1


ALL_IGNORED = seg_sample(torch.full((12, 16), 255))


def test_all_ignored_labels_give_no_loss_and_no_gradient():
    pruner = build()
    loss = pruner.aux_loss(
        pruner.predict(tokens_at(torch.randn(2, 12, DIM), torch.arange(12).expand(2, -1))), [ALL_IGNORED] * 2, GRID
    )
    loss.backward()
    assert loss.item() == 0 and all(p.grad.abs().max() == 0 for p in pruner.parameters())


def test_an_ignored_sample_does_not_dilute_the_others(case):
    pruner, x, index, samples, *_ = case
    together = pruner.aux_loss(pruner.predict(tokens_at(x, index)), [samples[0], ALL_IGNORED], GRID)
    alone = pruner.aux_loss(pruner.predict(tokens_at(x[:1], index[:1])), samples[:1], GRID)
    torch.testing.assert_close(together, alone)


def test_scores_and_loss_are_float32_under_autocast(case):
    pruner, x, index, samples, *_ = case
    exact = pruner.predict(tokens_at(x, index)).scores
    with torch.autocast('cpu', dtype=torch.bfloat16):
        prediction = pruner.predict(tokens_at(x, index))
        assert prediction.logits.dtype == torch.bfloat16 and torch.equal(prediction.scores, exact)
        assert pruner.aux_loss(prediction, samples, GRID).dtype == torch.float32


@pytest.mark.parametrize('family', ['vit', 'eva02'])
def test_in_a_model_each_module_learns_from_the_tokens_that_reach_it(family):
    model = small_vit(family, dict(pruner=PRUNER, rate=8)).train()
    model.aux_is_read = True
    seen = []
    for block, pruner in model.pruners.items():
        original = pruner.predict
        pruner.predict = lambda tokens, f=original, block=block: seen.append((block, tokens)) or f(tokens)
    labels = torch.randint(CLASSES, (2, 24, 24))
    samples = [seg_sample(label) for label in labels]
    model(torch.randn(2, 3, 24, 24))
    losses = model.aux_losses(samples)
    assert [tokens.position.shape[1] for _, tokens in seen] == [36, 36 - 5, 36 - 13]  # 37, 32, 24 with the [CLS] token
    grid_shares = [
        torch.nn.functional.one_hot(label.view(6, 4, 6, 4), CLASSES + 1).float().mean(dim=(1, 3)).view(36, -1)
        for label in labels
    ]
    for block, tokens in seen:
        w = {k: p.detach().double() for k, p in model.pruners[block].named_parameters()}
        x, position = tokens.patches.detach().double(), tokens.position
        terms = [reference(w, s, at, h) for s, at, h in zip(x, position, grid_shares)]
        expected = sum(c for c, _ in terms) / position.numel() + sum(a for _, a in terms) / 2
        torch.testing.assert_close(losses[f'aux.{block}'].double(), expected, rtol=1e-4, atol=1e-5)
    losses['loss_aux'].backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learning == {n for n, _ in model.named_parameters() if n.startswith('pruners.')}


def test_at_inference_it_is_one_vector():
    model = small_vit(pruning=dict(pruner=PRUNER, rate=8)).eval()
    images = torch.randn(2, 3, 20, 24)
    before = model(images)[0].to_dense()
    model.switch_to_deploy()
    torch.testing.assert_close(model(images)[0].to_dense(), before)
    assert {name: tuple(p.shape) for name, p in model.pruners['0'].named_parameters()} == {'queries': (1, 16)}
    stripped = small_vit(pruning=dict(pruner=PRUNER, rate=8, deploy=True)).eval()
    stripped.load_state_dict(model.state_dict())
    assert torch.equal(stripped(images)[0].to_dense(), model(images)[0].to_dense())
    cropr = CroprPruner(16, (6, 6), 4, dict(type='MultiLabelAuxHead', num_classes=3), deploy=True)
    cropr.load_state_dict(model.pruners['0'].state_dict())  # the published scorer takes the same vector


def test_reverse_keeps_the_easy_ones(case):
    pruner, x, index, *_ = case
    other = build(reverse=True)
    other.load_state_dict(pruner.state_dict())
    tokens = tokens_at(x, index)
    assert torch.equal(other.score(tokens, Context(GRID)), -pruner.score(tokens, Context(GRID)))


def test_its_head_says_which_pruner_it_belongs_to():
    pruner = CroprPruner(DIM, GRID, PATCH, dict(type='TokenClassAuxHead', num_classes=CLASSES))
    prediction = pruner.predict(tokens_at(torch.randn(2, 13, DIM), torch.arange(12).expand(2, -1)))
    with pytest.raises(TypeError, match=r"pruning\.pruner\.type='DifficultyPruner'"):
        pruner.aux_loss(prediction, [ALL_IGNORED] * 2, GRID)
