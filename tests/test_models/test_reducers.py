"""The loop, SparseFeature and the necks take other ways to reduce tokens than pruning: merging, and early exit."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Untouched, shared_positions, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

from cropr_mm import BasePruner, BaseReducer, Removed, SparseFeature, TokenPooling, TokenReinsertion
from cropr_mm.tokens import rank

# --- merging: bipartite soft matching as in ToMe (Bolya et al., arXiv 2210.09461, section 3) ------------------------


@MODELS.register_module()
class MergingReducer(BaseReducer):
    """Merges ``count`` of every second patch token into the most similar of the others, by their mean."""

    def forward(self, tokens, count, context):
        patches, prefix, size = tokens.patches, tokens.num_prefix, tokens.size
        if size is None:
            size = torch.ones(tokens.x.shape[:2], device=patches.device)
        if count > patches.shape[1] // 2:
            raise ValueError(f'MergingReducer: {count} of {patches.shape[1]} tokens; at most half can merge at once')
        direction = F.normalize(patches.detach(), dim=-1)
        similarity, nearest = (direction[:, 1::2] @ direction[:, ::2].transpose(1, 2)).max(dim=-1)
        chosen = rank(similarity)[:, :count]
        rows, owners = prefix + 2 * chosen + 1, prefix + 2 * nearest.gather(1, chosen)
        sums = self.add(tokens.x * size[..., None], rows, owners)
        size = self.add(size[..., None], rows, owners)
        kept = torch.ones_like(tokens.all_positions).scatter(1, rows, 0).argsort(dim=1, descending=True, stable=True)
        merged = tokens._replace(x=sums / size, size=size[..., 0]).take(kept[:, :-count])
        where = tokens.all_positions
        return merged, [Removed(where.gather(1, rows), owner=where.gather(1, owners))]

    def add(self, x, rows, owners):
        """Each owner plus the rows that merge into it."""
        wide = (-1, -1, x.shape[-1])
        return x.scatter_add(1, owners[..., None].expand(wide), x.gather(1, rows[..., None].expand(wide)))


grids = st.tuples(st.integers(2, 6), st.integers(2, 6))
PLANS = [
    dict(rate=0.1, round_to=1),
    dict(target_ratio=0.5, round_to=1),
    dict(keep={0: 0.6, 2: 0.4}, round_to=1),
    dict(keep={1: 1.0}),
]


@settings(max_examples=60)
@given(grids, st.sampled_from(PLANS), st.sampled_from(['last_layer', None]), st.booleans())
def test_merged_positions_share_the_mean_of_what_was_merged(grid, plan, fusion, class_token):
    """With blocks that do nothing, a token is the mean of the patch embeddings at its positions, over all merges."""
    pruning = dict(pruner=dict(type='MergingReducer'), fusion=fusion, **plan)
    model = small_vit(pruning=pruning, arch=dict(class_token=class_token), out_indices=range(5), final_norm=False)
    for i in range(model.depth):
        model.blocks[i] = Untouched()
    images = torch.randn(2, 3, grid[0] * 4, grid[1] * 4)
    embedded = model.embed(images)[0][:, int(class_token) :]
    for level in model.double().eval()(images.double()):
        shared = shared_positions(level.removed, grid[0] * grid[1]) if level.removed else None
        dense = TokenReinsertion('zero')((level,))[0].flatten(2).transpose(1, 2)
        for b in range(2):
            groups = list(range(len(embedded[b]))) if shared is None else shared[b].tolist()
            for position, group in enumerate(groups if level.removed else []):
                members = [p for p, other in enumerate(groups) if other == group]
                torch.testing.assert_close(dense[b, position].float(), embedded[b, members].mean(0))
        torch.testing.assert_close(TokenPooling('avg')((level,))[0], dense.mean(1))


@pytest.mark.parametrize('windows', [{}, dict(window_size=3, global_blocks=(1, 4))])
@pytest.mark.parametrize('family', ['vit', 'eva02', 'dinov2', 'dinov3'])
def test_a_merged_model_runs_and_trains(family, windows):
    pruning = dict(pruner=dict(type='MergingReducer'), rate=6, fusion='last_layer')
    model = small_vit(family, pruning, out_indices=(2, 4), **windows).train()
    early, last = TokenReinsertion()(model(torch.randn(2, 3, 24, 24)))
    assert early.shape == last.shape == (2, 16, 6, 6)
    current = 36 - sum(model.counts((6, 6))[block] for block in (0, 1))  # when block 2 has run
    assert [early[b].flatten(1).unique(dim=1).shape[1] for b in range(2)] == [current] * 2
    last.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if 'norm' in n)


# --- early exit: a token that leaves leaves a prediction, and no value comes back -------------------------------------


@MODELS.register_module()
class ExitingPruner(BasePruner):
    """Tokens leave with the logits of a linear head, for good (as in DToP, Tang et al., ICCV 2023)."""

    def __init__(self, embed_dim, num_classes, **shape):
        super().__init__(embed_dim, **shape)
        self.head = nn.Linear(embed_dim, num_classes)

    def score(self, tokens, context):
        return -self.head(tokens.patches).amax(dim=-1)  # the most certain leave

    def forward(self, tokens, count, context):
        tokens, (part,) = super().forward(tokens, count, context)
        return tokens, [part._replace(prediction=self.head(part.x))]


def test_early_exits_keep_their_predictions():
    pruning = dict(pruner=dict(type='ExitingPruner', num_classes=3), rate=8, fusion=None)
    model = small_vit(pruning=pruning, final_norm=False).eval()  # with it, removed values are those of the exit
    features = model(torch.randn(2, 3, 24, 24))
    maps, found = TokenReinsertion(num_classes=3)(features)
    assert maps.shape == (2, 16, 6, 6) and found.shape == (2, 3 + 1, 6, 6)
    predicted = torch.zeros(2, 36, 3)
    for block, part in zip(model.schedule.blocks, features[0].removed):
        logits = model.pruners[str(block)].head(part.x)
        predicted.scatter_(1, part.position[..., None].expand(-1, -1, 3), logits)
    left = (predicted != 0).any(dim=-1, keepdim=True).float()
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), torch.cat([predicted, left], dim=-1))
    assert (left.sum(dim=1) == features[0].num_held - features[0].tokens.shape[1]).all()


def test_predictions_are_not_lost_silently():
    features = small_vit(pruning=dict(pruner=dict(type='ExitingPruner', num_classes=3), rate=8)).eval()
    features = features(torch.randn(1, 3, 24, 24))
    assert len(TokenReinsertion()(features)) == 1  # Last Layer Fusion: every token came back
    pruning = dict(pruner=dict(type='ExitingPruner', num_classes=3), rate=8, fusion=None)
    features = small_vit(pruning=pruning).eval()(torch.randn(1, 3, 24, 24))
    with pytest.raises(ValueError, match=r'TokenReinsertion.num_classes=None, but pruned tokens left predictions'):
        TokenReinsertion()(features)
    with pytest.raises(ValueError, match='predictions of 3 channels; 4 are expected'):
        TokenReinsertion(num_classes=4)(features)


# --- what a reducer gives back is checked -----------------------------------------------------------------------------


@MODELS.register_module()
class BrokenReducer(BaseReducer):
    fault = None

    def forward(self, tokens, count, context):
        rows = torch.arange(tokens.x.shape[1]).expand(len(tokens.x), -1)
        kept, gone = tokens.take(rows[:, :-count]), tokens.take(rows[:, -count:])
        part = Removed(gone.all_positions, gone.x)
        faults = dict(
            none=(kept, [part]),
            several=(kept, [Removed(part.position[:, i], part.x[:, i]) for i in (slice(1), slice(1, None))]),
            kept_all=(tokens, [part]),
            told_nothing=(kept, []),
            no_way_back=(kept, [Removed(part.position)]),
            no_owners=(kept, [Removed(part.position, weight=torch.ones(*part.position.shape, 1))]),
            no_weights=(kept, [Removed(part.position, owner=part.position.unsqueeze(-1))]),
            other_weights=(kept, [Removed(part.position, owner=part.position, weight=part.position.unsqueeze(-1))]),
            too_few=(kept, [Removed(part.position, owner=part.position[:, 1:])]),
        )
        return faults[self.fault]


@pytest.mark.parametrize(
    'fault, words',
    [
        ('kept_all', r'remove 5 patch tokens; it removed 0 and tells of 5'),
        ('told_nothing', r'remove 5 patch tokens; it removed 5 and tells of 0'),
        ('no_way_back', r'BrokenReducer.forward: Removed has neither x nor owner'),
        ('no_owners', r'BrokenReducer.forward: Removed has neither x nor owner'),
        ('no_weights', r'owner \(1, 5, 1\) and weight None for position \(1, 5\); owner \(B, R\) alone, or both'),
        ('other_weights', r'owner \(1, 5\) and weight \(1, 5, 1\) for position \(1, 5\)'),
        ('too_few', r'owner \(1, 4\) and weight None for position \(1, 5\)'),
    ],
)
def test_a_reduction_that_loses_positions_is_refused(monkeypatch, fault, words):
    monkeypatch.setattr(BrokenReducer, 'fault', fault)
    model = small_vit(pruning=dict(pruner=dict(type='BrokenReducer'), rate=8)).eval()
    with pytest.raises(ValueError, match=words):
        model(torch.randn(1, 3, 24, 24))


def test_a_reduction_may_come_in_several_parts(monkeypatch):
    model = small_vit(pruning=dict(pruner=dict(type='BrokenReducer'), rate=8)).eval()
    images, maps = torch.randn(2, 3, 24, 24), []
    for fault in ('none', 'several'):
        monkeypatch.setattr(BrokenReducer, 'fault', fault)
        maps.append(model(images)[0].to_dense())
    assert torch.equal(*maps)


def test_the_mean_over_many_merged_positions_fits_half_precision():
    tokens = torch.full((1, 1, 2), 100.0, dtype=torch.float16)
    owner = torch.zeros(1, 1023, dtype=torch.long)
    merged = Removed(torch.arange(1, 1024)[None], owner=owner)
    feature = SparseFeature(tokens, torch.tensor([[0]]), (32, 32), (merged,))
    assert feature.mean().tolist() == [[100, 100]] and feature.mean().dtype == torch.float16


def test_scores_may_be_integers():
    class Positions(BasePruner):
        def score(self, tokens, context):
            return tokens.position

    model = small_vit(pruning=dict(pruner=dict(type=Positions), rate=8)).eval()
    kept = []
    model.prune_listeners.append(lambda block, positions, pruned: kept.append(positions[0].tolist()))
    model(torch.randn(1, 3, 24, 24))
    assert sorted(kept[0]) == list(range(5, 36))
