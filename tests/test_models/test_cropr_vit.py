"""The whole pruned forward against one that never moves a token: it masks attention instead."""

import math

import pytest
import torch
from helpers import SMALL, Untouched, cropr, seg_sample, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cropr_mm import BasePruner, TokenReinsertion
from cropr_mm.models.pruning import schedule
from cropr_mm.models.rotary import apply_rotary, rotary_angles

FUSIONS = [fusion for fusion in schedule.FUSIONS if fusion != 'logits']  # which brings no token back
PLANS = [
    dict(rate=8),
    dict(rate=0.2),
    dict(rate=3, round_to=1),
    dict(rate=5, round_to=2, blocks=[0, 2]),
    dict(keep={1: 0.3}),
    dict(keep={0: 0.7, 2: 0.25}, round_to=1),
    dict(rate=0),
    dict(keep={1: 1.0}),
]
SCORES = {
    'CroprPruner': lambda pruner, x, shares: (x @ pruner.queries.T).sum(-1) * (-1 if pruner.reverse else 1),
    'VariancePruner': lambda pruner, x, shares: x.var(-1),
    'AttentionPruner': lambda pruner, x, shares: shares[:, :, 0].mean(1),
}
WINDOWS = [
    dict(window_size=2, global_blocks=(1, 4)),
    dict(window_size=3, global_blocks=(-1,)),
    dict(window_size=2),
    dict(window_size=4, global_blocks=(0, 2)),
]
PRUNERS = [cropr(), cropr('PatchSegAuxHead', reverse=True), dict(type='VariancePruner'), dict(type='AttentionPruner')]
grids = st.tuples(st.integers(1, 7), st.integers(1, 7))


def masked_block(block, x, alive, rotary, near):
    """A block over all tokens in raster order, of which only those alive are attended to, by those near, and change.

    Also returns the attention weights (B, heads, M, M).
    """
    y = block.norm1(x)
    q, k, v = block.attn._qkv(y)
    if rotary is not None:
        q, k = (apply_rotary(t, rotary, block.attn.rotary_halves) for t in (q, k))
    logits = torch.einsum('bqhd,bkhd->bhqk', q, k) / math.sqrt(q.shape[-1])
    shares = logits.masked_fill(~(alive[:, None, None, :] & near), -math.inf).softmax(-1)
    shares = shares.nan_to_num()  # a token that has left may be alone in its window
    y = x + block.ls1(block.attn.proj(block.attn.norm(torch.einsum('bhqk,bkhd->bqhd', shares, v).flatten(2))))
    y = y + block.ls2(block.mlp(block.norm2(y)))
    return torch.where(alive[..., None], y, x), shares


def window_of(token, model, grid):
    """Number of the window, and place in it, of a token; None for a prefix token."""
    if token < model.num_prefix_tokens:
        return None
    row, column = divmod(token - model.num_prefix_tokens, grid[1])
    size = model.window_size
    return (row // size, column // size), (row % size, column % size)


def local_attention(model, grid):
    """Which token may attend to which (M, M), and rotary angles, in a block with windows."""
    prefix, size = model.num_prefix_tokens, model.window_size
    windows = [window_of(token, model, grid) for token in range(prefix + grid[0] * grid[1])]
    near = torch.tensor([[a is None or b is None or a[0] == b[0] for b in windows] for a in windows])
    table = rotary_angles(model.arch, (size, size), torch.device('cpu'))
    if table is not None:
        table = torch.stack(
            [table[i] if w is None else table[prefix + w[1][0] * size + w[1][1]] for i, w in enumerate(windows)]
        )
    return near, table


def returned_late(module, x, alive):
    """Tokens (B, M, D) of which those that are not alive have attended to those that are, one by one."""
    out, (key_weight, value_weight) = x.clone(), module.kv.weight.chunk(2)
    key_bias, value_bias = module.kv.bias.chunk(2)
    for b in range(len(x)):
        current = module.norm_current(x[b, alive[b]])
        keys, values = current @ key_weight.T + key_bias, current @ value_weight.T + value_bias
        for token in (~alive[b]).nonzero().flatten().tolist():
            query, mixed = module.q(module.norm_pruned(x[b, token])), []
            for q, k, v in zip(*(t.chunk(module.num_heads, dim=-1) for t in (query, keys, values))):
                mixed.append(((k @ q) / math.sqrt(len(q))).softmax(0) @ v)
            out[b, token] = x[b, token] + module.proj(torch.cat(mixed))
    return out


def masked_forward(model, images, progress=1.0):
    """Every level as (map of all tokens, alive), and the patch tokens alive after each pruner."""
    x, grid = model.embed(images)
    prefix, last = model.num_prefix_tokens, model.depth - 1
    alive = torch.ones(x.shape[:2], dtype=torch.bool)
    rotary = rotary_angles(model.arch, grid, x.device)
    counts = dict(zip(model.schedule.blocks, model.schedule.counts(grid, prefix, progress)))
    levels, kept = [], []
    for i, block in enumerate(model.blocks):
        if i == last and model.fusion:
            alive = torch.ones_like(alive)
        local = model.window_size is not None and i not in model.global_blocks
        near, angles = local_attention(model, grid) if local else (torch.ones(1, 1, dtype=torch.bool), rotary)
        x, shares = masked_block(block, x, alive, angles, near)
        if i == last and model.late_return is not None:
            x, alive = returned_late(model.late_return, x, alive), torch.ones_like(alive)
        if i in model.out_indices:
            y = model.norm(x) if i == last else x
            levels.append((y[:, prefix:].transpose(1, 2).unflatten(2, grid), alive[:, prefix:].unflatten(1, grid)))
        if i in counts:
            scores = SCORES[type(model.pruners[str(i)]).__name__](model.pruners[str(i)], x, shares)
            scores = scores[:, prefix:].masked_fill(~alive[:, prefix:], -math.inf)
            stay = int(alive[0].sum()) - prefix - counts[i]
            alive = alive.clone()
            for b in range(len(x)):
                best = sorted(range(scores.shape[1]), key=lambda t: -scores[b, t].item())[:stay]
                alive[b, prefix:] = False
                alive[b, prefix + torch.tensor(best)] = True
            kept.append(alive[:, prefix:].clone())
    return levels, kept


def record(model):
    seen = []
    model.prune_listeners.append(lambda *call: seen.append(call))
    return seen


@settings(max_examples=120)
@given(
    family=st.sampled_from(list(SMALL)),
    grid=grids,
    batch=st.integers(1, 3),
    plan=st.sampled_from(PLANS),
    fusion=st.sampled_from(FUSIONS),
    class_token=st.booleans(),
    pruner=st.sampled_from(PRUNERS),
    fill=st.sampled_from(['exit', 'zero', 'mask_token']),
    listening=st.booleans(),
    windows=st.sampled_from([{}, {}, *WINDOWS]),
)
def test_pruned_forward_equals_masked_forward(
    family, grid, batch, plan, fusion, class_token, pruner, fill, listening, windows
):
    model = small_vit(
        family,
        dict(pruner=pruner, fusion=fusion, **plan),
        arch=dict(class_token=class_token or pruner['type'] == 'AttentionPruner'),
        out_indices=(0, 1, 3, 4),
        **windows,
    )
    model.double().eval()
    images = torch.randn(batch, 3, grid[0] * 4, grid[1] * 4, dtype=torch.float64)
    seen = record(model) if listening else []
    neck = TokenReinsertion(fill, embed_dim=16).double()
    with torch.no_grad():
        maps = neck(model(images))
        levels, kept = masked_forward(model, images)
    for ours, (x, alive) in zip(maps, levels):
        alive = alive[:, None]
        if fill == 'zero':
            x = torch.where(alive, x, torch.zeros_like(x))
        elif fill == 'mask_token':
            x = torch.where(alive, x, neck.mask_token.view(1, -1, 1, 1))
        torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)
    assert [block for block, _, _ in seen] == (list(model.schedule.blocks) if listening else [])
    for (_, kept_here, pruned), expected in zip(seen, kept):
        for b in range(batch):
            assert set(kept_here[b].tolist()) == set(expected[b].nonzero().flatten().tolist())
            assert not set(kept_here[b].tolist()) & set(pruned[b].tolist())


@pytest.mark.parametrize('family', ['vit', 'eva02'])
@pytest.mark.parametrize('progress', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('windows', [{}, WINDOWS[0], WINDOWS[3]])
def test_gradients_equal_those_of_the_masked_forward(family, progress, fusion, windows):
    model = small_vit(family, dict(pruner=cropr(), rate=8, fusion=fusion), **windows).double().train()
    model.aux_is_read, model.pruning_progress = True, progress
    images, target = torch.randn(2, 3, 24, 24).double(), torch.randn(2, 16, 6, 6).double()
    parameters = [p for n, p in model.named_parameters() if not n.startswith('pruners.')]
    ours = torch.autograd.grad((model(images)[0].to_dense() * target).sum(), parameters)
    ((level, _),) = masked_forward(model, images, progress)[0]
    expected = torch.autograd.grad((level * target).sum(), parameters, allow_unused=True)
    expected = tuple(torch.zeros_like(p) if grad is None else grad for grad, p in zip(expected, parameters))
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


def test_without_progress_training_equals_the_dense_model():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8)).train()
    dense = small_vit().train()
    dense.load_state_dict(model.state_dict(), strict=False)
    model.pruning_progress = 0.0
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(model(images)[0].tokens, dense(images)[0].tokens)


def test_evaluation_prunes_at_the_full_rate_whatever_the_progress():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8)).eval()
    images = torch.randn(1, 3, 24, 24)
    full = model(images)[0].tokens
    model.pruning_progress = 0.0
    assert torch.equal(model(images)[0].tokens, full)


@pytest.mark.parametrize('windows', [{}, WINDOWS[1]])
def test_padding_never_displaces_a_token_of_the_image(windows):
    """Images of different sizes in one batch: padding is pruned first, whatever its score."""
    model = small_vit(pruning=dict(pruner=dict(type='LovesPadding'), rate=8, round_to=1), **windows).eval()
    images, sizes = torch.zeros(3, 3, 24, 24), [(24, 24), (10, 24), (15, 7)]
    for image, (height, width) in zip(images, sizes):
        image[:, :height, :width] = torch.randn(3, height, width)
    seen = record(model)
    model(images)
    for b, (height, width) in enumerate(sizes):
        real = {6 * row + column for row in range(-(-height // 4)) for column in range(-(-width // 4))}
        for _, kept, _ in seen:
            left = set(kept[b].tolist())
            assert real <= left or left <= real


@MODELS.register_module()
class LovesPadding(BasePruner):
    def score(self, tokens, context):
        return tokens.position.float()  # what is at the bottom stays


def test_samples_of_a_batch_do_not_meet():
    model = small_vit('eva02', dict(pruner=cropr(), rate=8)).double().eval()
    images = torch.randn(3, 3, 24, 24).double()
    together = model(images)[0].to_dense()
    for b in range(3):
        torch.testing.assert_close(model(images[b : b + 1])[0].to_dense()[0], together[b])


# --- no token is lost or repeated -----------------------------------------------------------------------------


@MODELS.register_module()
class NastyPruner(BasePruner):
    """Scores out of few values, NaN and infinities among them."""

    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])

    def score(self, tokens, context):
        return self.values[torch.randint(len(self.values), tokens.position.shape)]


@settings(max_examples=100)
@given(grids, st.integers(1, 3), st.sampled_from(PLANS), st.sampled_from(FUSIONS), st.booleans())
def test_tokens_come_back_to_the_bit_where_they_were(grid, batch, plan, fusion, class_token):
    """With blocks that do nothing, the map is the patch embedding, whatever was pruned on the way."""
    pruning = dict(pruner=dict(type='NastyPruner'), fusion=fusion, **plan)
    model = small_vit(pruning=pruning, arch=dict(class_token=class_token), out_indices=range(5), final_norm=False)
    for i in range(model.depth):
        model.blocks[i] = Untouched()
    if model.late_return is not None:  # as it begins
        torch.nn.init.zeros_(model.late_return.proj.weight), torch.nn.init.zeros_(model.late_return.proj.bias)
    images = torch.randn(batch, 3, grid[0] * 4, grid[1] * 4)
    embedded = model.embed(images)[0][:, int(class_token) :].transpose(1, 2).unflatten(2, grid)
    for level in model.eval()(images):
        assert torch.equal(level.to_dense(), embedded)


@settings(max_examples=50)
@given(grids, st.sampled_from(PLANS), st.sampled_from(FUSIONS))
def test_levels_hold_each_position_once(grid, plan, fusion):
    pruning = dict(pruner=dict(type='NastyPruner'), fusion=fusion, **plan)
    model = small_vit(pruning=pruning, out_indices=range(5)).eval()
    patches = torch.arange(grid[0] * grid[1])
    for level in model(torch.randn(2, 3, grid[0] * 4, grid[1] * 4)):
        if level.position is not None:
            held = torch.cat([level.position, *(part.position for part in level.removed)], dim=1)
            assert torch.equal(held.sort(dim=1).values, patches.expand(2, -1))


@settings(max_examples=50)
@given(grids, st.sampled_from(PLANS), st.sampled_from(FUSIONS))
def test_each_pruner_splits_what_the_one_before_kept(grid, plan, fusion):
    model = small_vit(pruning=dict(pruner=dict(type='NastyPruner'), fusion=fusion, **plan)).eval()
    seen = record(model)
    model(torch.randn(1, 3, grid[0] * 4, grid[1] * 4))
    before = set(range(grid[0] * grid[1]))
    for _, kept, removed in seen:
        assert kept.shape[1] + removed.shape[1] == len(before)
        assert set(kept[0].tolist()) | set(removed[0].tolist()) == before
        before = set(kept[0].tolist())


@pytest.mark.parametrize('family', ['vit', 'eva02'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_broken_pixels_cost_no_token(family, value):
    model = small_vit(family, dict(pruner=cropr(), rate=8)).eval()
    images = torch.randn(2, 3, 24, 24)
    images[0, 0, 5, 5] = value
    seen = record(model)
    dense = model(images)[0].to_dense()
    for _, kept, removed in seen[:1]:
        assert torch.cat([kept, removed], dim=1).sort(dim=1).values.tolist() == [list(range(36))] * 2
    torch.testing.assert_close(dense[1:], model(images[1:])[0].to_dense())  # the whole image beside it is unharmed


def test_a_listener_changes_nothing_where_nothing_is_pruned():
    """A pruner whose count is 0 must leave the order of the tokens alone."""
    model = small_vit('eva02', dict(pruner=cropr(), rate=0)).eval()
    images = torch.randn(1, 3, 24, 24)
    before = model(images)[0].tokens
    seen = record(model)
    assert torch.equal(model(images)[0].tokens, before)
    assert [(b, k.shape, r.shape) for b, k, r in seen] == [(i, (1, 36), (1, 0)) for i in range(3)]


# --- auxiliary predictions that nobody reads ------------------------------------------------------------------


def test_training_without_reading_the_auxiliary_losses_is_an_error():
    model = small_vit(pruning=dict(pruner=cropr(), rate=8)).train()
    model(torch.randn(1, 3, 24, 24))
    with pytest.raises(RuntimeError, match=r"custom_hooks=\[dict\(type='CroprHook'\)\]"):
        model(torch.randn(1, 3, 24, 24))


def test_reading_them_by_hand_is_enough():
    model = small_vit(pruning=dict(pruner=cropr('PatchSegAuxHead'), rate=8)).train()
    samples = [seg_sample(torch.zeros(24, 24, dtype=torch.long))]
    for _ in range(3):
        model(torch.randn(1, 3, 24, 24))
        assert model.aux_losses(samples)['loss_aux'].item() > 0


class CountOperations(TorchDispatchMode):
    """Counts what a GPU would launch: every operation that does more than look at a tensor in another way."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        made = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
        self.count += any(t.untyped_storage().data_ptr() not in held for t in made)
        return result


@pytest.mark.parametrize('batch, most', [(1, 11), (4, 15)])
@pytest.mark.parametrize('family', ['vit', 'eva02'])
def test_a_module_adds_few_operations(family, batch, most):
    """At batch 1 a GPU waits for launches; a block has 10 (ViT) or 17 (EVA-02) of its own."""
    counts = []
    for blocks in ([0], [0, 1, 2]):
        pruning = dict(pruner=dict(type='DifficultyPruner', num_classes=3), rate=8, blocks=blocks)
        model = small_vit(family, pruning=pruning).eval()
        images = torch.randn(batch, 3, 24, 24)
        with torch.no_grad(), CountOperations() as operations:
            features = model(images)[-1]
        assert features.complete
        counts.append(operations.count)
    assert 0 < counts[1] - counts[0] <= 2 * most
