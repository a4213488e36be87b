"""The core runs where nothing but torch and mmengine is importable."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BLOCK = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ImportError(name + ' is blocked')

sys.meta_path.insert(0, Block())
"""

# Not cv2, which mmengine itself imports. What is optional to torch and mmengine is absent here, too.
MM = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'timm', 'matplotlib', 'PIL'}

STEP = """
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
import cropr_mm

class Model(BaseModel):
    def __init__(self, head):
        super().__init__()
        arch = dict(family='eva02', embed_dim=16, depth=5, num_heads=2)
        pruner = dict(type='CroprPruner', aux_head=dict(type=head, num_classes=3))
        self.backbone = MODELS.build(dict(
            type='CroprViT', arch=arch, img_size=24, patch_size=4, pruning=dict(pruner=pruner, rate=8)))
        pyramid = dict(type='SimpleFeaturePyramid', in_channels=16, in_stride=4)
        self.neck = MODELS.build([dict(type='TokenReinsertion'), pyramid])

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.neck(self.backbone(inputs))
        return dict(loss=sum(m.square().mean() for m in maps)) if mode == 'loss' else maps

for head in ('PatchSegAuxHead', 'MultiLabelAuxHead'):
    model = Model(head)
    cropr_mm.CroprHook().attach(model)
    sample = BaseDataElement(gt_sem_seg=PixelData(data=torch.ones(1, 24, 24, dtype=torch.long)))
    if head == 'MultiLabelAuxHead':
        sample.gt_instances = InstanceData(labels=torch.tensor([1]))
    before = model.backbone.pruners['0'].queries.detach().clone()
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    log = model.train_step(dict(inputs=torch.randn(2, 3, 24, 24), data_samples=[sample] * 2), optim)
    assert log['cropr.loss_aux'] > 0 and not torch.equal(model.backbone.pruners['0'].queries, before)
    model.eval()
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 24, 24))] == [6, 3, 2, 1, 1]
print('done', *sorted({m.split('.')[0] for m in sys.modules} & {watched}))
"""


def test_a_pruned_training_step_needs_torch_and_mmengine_only():
    code = BLOCK.replace('{blocked}', repr(MM)) + STEP.replace('{watched}', repr(MM))
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split('\n')[-2] == 'done'
