"""Maps of exits, and the shares that reach each block."""

from types import MappingProxyType

import pytest
import torch
from helpers import cropr, seg_sample, small_vit
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData

from cropr_mm.analysis.routing import (
    KEPT,
    exits_of_all,
    predict_with_routing,
    record_routing,
    routing_overlap,
    routing_shares,
)
from cropr_mm.models.cropr_vit import find_backbone

PRUNING = dict(rate=8, pruner=cropr())


def test_exits_count_what_the_schedule_says():
    model = small_vit(pruning=PRUNING).eval()
    with torch.no_grad(), record_routing(model) as routing:
        for _ in range(2):
            model(torch.randn(3, 3, 24, 24))
    assert len(routing.passes) == 2
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


def test_shares_of_classes_by_hand():
    model = Segmentor(PRUNING).eval()
    for pruner in model.backbone.pruners.values():
        pruner.score = lambda tokens, context: -tokens.position.float()  # the upper rows are kept
    label = torch.full((24, 24), 255)
    label[:8], label[8:10] = 1, 0  # class 1: two rows of patches; class 0: half of the next
    batch = dict(inputs=torch.randn(1, 3, 24, 24), data_samples=[seg_sample(label)])
    shares = routing_shares(model, [batch], object_classes=[1], classes=['thin', 'wide', 'absent'])
    left = (36 - torch.tensor([0, *model.backbone.schedule.counts((6, 6), 1)]).cumsum(0)).tolist()
    assert shares['class_tokens'] == {'thin': 3, 'wide': 12}
    assert shares['classes']['wide'][:4] == pytest.approx([min(1, n / 12) for n in left])
    assert shares['classes']['thin'][:4] == pytest.approx([min(1, max(0, n - 12) / 6) for n in left])
    assert shares['classes']['wide'][4] == 1


def test_instances_may_share_pixels_and_the_rest_is_background():
    model = Segmentor(PRUNING).eval()
    for pruner in model.backbone.pruners.values():
        pruner.score = lambda tokens, context: -tokens.position.float()
    masks = torch.zeros(3, 24, 24)
    masks[0, :4] = masks[1, :8] = masks[2, :2] = 1
    sample = BaseDataElement(
        gt_instances=InstanceData(masks=masks, labels=torch.tensor([0, 1, 0])), metainfo=dict(img_shape=(24, 24))
    )
    shares = routing_shares(model, [dict(inputs=torch.randn(1, 3, 24, 24), data_samples=[sample])], None, ['a', 'b'])
    assert shares['class_tokens'] == {'a': 6, 'b': 12, 'background': 24}
    assert shares['classes']['background'] == pytest.approx(shares['background'])


class Slider(Segmentor):
    """Predicts in the windows of mmsegmentation's ``slide`` mode: here from columns 0, 10 and 12."""

    test_cfg = MappingProxyType(dict(mode='slide', crop_size=(24, 24), stride=(24, 10)))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.crops = [inputs[..., left : left + 24] for left in (0, 10, 12)]
        for crop in self.crops:
            self.backbone(crop)
        return data_samples


@pytest.mark.parametrize(
    'pruning',
    [
        PRUNING,
        dict(rate=8, pruner=dict(type='ToMeReducer')),
        dict(rate=8, pruner=cropr(), absorb='nearest'),
        dict(rate=8, pruner=cropr(), absorb='fused_token'),
        dict(rate=8, pruner=cropr(), fusion=None, blocks=[0, 2]),
    ],
)
def test_exits_of_all_count_per_image_and_window(pruning):
    model = Slider(pruning).eval()
    samples = [seg_sample(torch.zeros(24, 36)) for _ in range(2)]
    routed = predict_with_routing(model, dict(inputs=torch.randn(2, 3, 24, 36), data_samples=samples))
    gone = dict(zip(model.backbone.schedule.blocks, model.backbone.schedule.counts((6, 6), 1)))
    assert exits_of_all(routed).tolist() == [*(gone.get(block, 0) for block in range(5)), 36 - sum(gone.values())]


def test_each_sliding_window_counts_with_the_labels_of_its_crop():
    model, label = Slider(PRUNING).eval(), torch.randint(0, 3, (24, 36))
    image, sample = torch.randn(1, 3, 24, 36), seg_sample(label)
    shares = routing_shares(model, [dict(inputs=image, data_samples=[sample])], [1], ['a', 'b', 'c'])
    routed = predict_with_routing(model, dict(inputs=image, data_samples=[sample]))
    reached, total, on_objects = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for left, crop in zip((0, 10, 12), model.crops):
        with torch.no_grad(), record_routing(model.backbone) as routing:
            model.backbone(crop)
        exits = routing.exits(1, (6, 6))[0]
        for y in range(6):
            for x in range(6):
                patch = label[y * 4 : y * 4 + 4, left + x * 4 : left + x * 4 + 4]
                on_objects += int((patch == 1).sum() >= 8)
                for name in range(3):
                    covered = (patch == name).sum() / 16
                    total[name] += covered
                    for block in range(5):
                        reached[name, block] += covered * bool(exits[y, x] in (KEPT, 4) or exits[y, x] >= block)
    reached[:, -1] = total  # Last Layer Fusion
    for name, row, tokens in zip('abc', reached, total):
        assert shares['class_tokens'][name] == pytest.approx(float(tokens))
        assert shares['classes'][name] == pytest.approx((row / tokens).tolist())
    assert shares['object_tokens'] == on_objects and shares['object_tokens'] + shares['background_tokens'] == 108

    deepest = routed.deepest()[0]
    assert deepest.shape == (6, 9) and deepest.min() >= KEPT
    parts = [torch.where(exits[0] == KEPT, 5, exits[0]) for exits in routed.exits]
    for x in range(9):  # 10 pixels are 2 patches and a half, which rounds to 2
        seen = [part[:, x - left] for part, left in zip(parts, (0, 2, 3)) if 0 <= x - left < 6]
        expected = torch.stack(seen).amax(dim=0)
        assert torch.equal(torch.where(deepest[:, x] == KEPT, 5, deepest[:, x]), expected)


def test_labels_at_the_size_of_the_file_count_at_that_of_the_batch():
    label = torch.zeros(48, 48, dtype=torch.long)
    label[:16] = 1
    sample = seg_sample(label)
    sample.set_metainfo(dict(ori_shape=(48, 48), img_shape=(24, 24)))
    batch = dict(inputs=torch.randn(1, 3, 24, 24), data_samples=[sample])
    shares = routing_shares(Segmentor(None).eval(), [batch], object_classes=[1], classes=['rest', 'top'])
    assert shares['class_tokens'] == {'rest': 24, 'top': 12}


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
