"""What a linear classifier reads from the tokens at each depth."""

import pytest
import torch
from torch import nn

from cropr_mm.analysis.depth import probe_depth

from ..helpers import Untouched, seg_sample, small_vit


class Model:
    """What the probe needs of a segmentor: a backbone whose tokens tell nothing at first and all after block 2."""

    def __init__(self, classes):
        self.backbone = small_vit(pruning=dict(pruner=dict(type='RandomPruner'), rate=4))
        self.backbone.blocks = nn.ModuleList([Untouched() for _ in range(5)])
        self.decode_head = nn.Module()
        self.decode_head.num_classes = classes
        for block in (2, 3, 4):
            self.backbone.blocks[block].forward = self.tell

    def modules(self):
        return self.backbone.modules()

    def tell(self, x, rotary=None, windows=None):
        assert x.shape[1] == 37, 'nothing is pruned'
        told = torch.randn_like(x)
        told[:, 1:, :3] += 20 * nn.functional.one_hot(self.labels.flatten(1), 3)
        return told

    def data_preprocessor(self, batch, training):
        self.labels = batch['labels']
        return dict(inputs=torch.zeros(len(self.labels), 3, 24, 24), data_samples=batch['samples'])


def batch(images, classes=3):
    labels = torch.randint(classes, (images, 6, 6))
    samples = [seg_sample(label.repeat_interleave(4, 0).repeat_interleave(4, 1)) for label in labels]
    return dict(labels=labels, samples=samples)


def test_accuracy_rises_where_the_tokens_begin_to_tell():
    torch.manual_seed(0)
    model = Model(3)
    found = probe_depth(model, [batch(4), batch(4)], [batch(6)], object_classes=[2])
    assert set(found) == {'all', 'object', 'background'}
    assert all(len(row) == 6 for row in found.values())
    assert max(found['all'][:3]) < 0.6 and min(found['all'][3:]) > 0.95
    mean = [(o + 2 * b) / 3 for o, b in zip(found['object'], found['background'])]
    assert found['all'] == pytest.approx(mean)
    assert model.backbone.pruning_progress == 1.0, 'as before'


def test_images_without_labels_are_refused():
    empty = dict(labels=torch.zeros(1, 6, 6, dtype=torch.long), samples=[seg_sample(torch.full((24, 24), 255))])
    with pytest.raises(ValueError, match='no patch'):
        probe_depth(Model(3), [empty], [empty])
