"""Maps of exits, and the shares that reach each block."""

import pytest
import torch
from helpers import cropr, seg_sample, small_vit
from mmengine.model import BaseModel

from cropr_mm.analysis.routing import KEPT, record_routing, routing_overlap, routing_shares
from cropr_mm.models.cropr_vit import find_backbone

PRUNING = dict(rate=8, pruner=cropr())


def test_exits_count_what_the_schedule_says():
    model = small_vit(pruning=PRUNING).eval()
    with torch.no_grad(), record_routing(model) as routing:
        for _ in range(2):  # the second pass replaces the first
            model(torch.randn(3, 3, 24, 24))
    exits = routing.exits(3, (6, 6))
    counts = model.schedule.counts((6, 6), 1)
    for block, count in zip(model.schedule.blocks, counts):
        assert ((exits == block).flatten(1).sum(dim=1) == count).all()
    assert ((exits == KEPT).flatten(1).sum(dim=1) == 36 - sum(counts)).all()
    assert not model.prune_listeners


def test_exits_follow_the_scores():
    model = small_vit(pruning=PRUNING).eval()
    model.pruners['0'].score = lambda tokens, context: tokens.position.float()  # the first rows leave first
    with torch.no_grad(), record_routing(model) as routing:
        model(torch.randn(1, 3, 24, 24))
    count = model.schedule.counts((6, 6), 1)[0]
    assert (routing.exits(1, (6, 6)).flatten() == 0).nonzero().flatten().tolist() == list(range(count))


class Segmentor(BaseModel):
    def __init__(self, pruning):
        super().__init__()
        self.backbone = small_vit(pruning=pruning)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.backbone(inputs)
        return data_samples


def batches(count=2):
    label = torch.zeros(24, 24, dtype=torch.long)
    label[:8] = 5  # the two upper rows of patches
    for _ in range(count):
        yield dict(inputs=torch.randn(3, 3, 24, 24), data_samples=[seg_sample(label) for _ in range(3)])


def test_shares_of_objects_and_background():
    model = Segmentor(PRUNING).eval()
    for pruner in model.backbone.pruners.values():
        pruner.score = lambda tokens, context: -tokens.position.float()  # the upper rows are kept
    shares = routing_shares(model, batches(), object_classes=[5])
    assert (shares['images'], shares['object_tokens'], shares['background_tokens']) == (6, 6 * 12, 6 * 24)
    left = 36 - torch.tensor([0, *model.backbone.schedule.counts((6, 6), 1)]).cumsum(0)
    assert shares['object'][:4] == [min(1, n / 12) for n in left.tolist()]
    assert shares['background'][:4] == pytest.approx([max(0, n - 12) / 24 for n in left.tolist()])
    assert shares['object'][4] == shares['background'][4] == 1  # Last Layer Fusion brings all back


def test_dense_models_keep_all():
    shares = routing_shares(Segmentor(None).eval(), batches(), object_classes=[5])
    assert shares['object'] == shares['background'] == [1] * 5


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match='no CroprViT'):
        find_backbone(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match='no batch'):
        routing_shares(Segmentor(None), [])


def test_overlap_counts_what_both_keep():
    model, same, opposite = (Segmentor(PRUNING).eval() for _ in range(3))
    for net, sign in ((model, -1), (same, -1), (opposite, 1)):
        for pruner in net.backbone.pruners.values():
            pruner.score = lambda tokens, context, sign=sign: sign * tokens.position.float()
    left = 36 - torch.tensor(model.backbone.schedule.counts((6, 6), 1)).cumsum(0)
    assert routing_overlap(model, same, batches()) == dict.fromkeys(range(3), 1.0)
    expected = [max(0, 2 * n - 36) / n for n in left.tolist()]  # the upper n and the lower n of 36
    assert list(routing_overlap(model, opposite, batches()).values()) == pytest.approx(expected)


def test_overlap_needs_one_schedule():
    with pytest.raises(ValueError, match=r'after blocks \[0, 1, 2\] .* and after \[1\]'):
        other = Segmentor(dict(pruner=cropr(), rate=8, blocks=[1])).eval()
        routing_overlap(Segmentor(PRUNING).eval(), other, batches())
    with pytest.raises(ValueError, match='no pruner removes a token'):
        routing_overlap(Segmentor(None).eval(), Segmentor(None).eval(), batches())
