"""A class out of range stops the GPU, which says why. In a process of its own, as nothing runs on a GPU after that.

Not beside other work under MPS: the processes that share the GPU stop with it.
"""

import subprocess
import sys
from pathlib import Path

CODE = """
import torch
from cropr_mm.models.pruning.supervision.targets import check_classes
labels = torch.tensor([0, 2, 255], device='cuda')
check_classes(labels, 3, 255, 'PatchSegAuxHead')
torch.cuda.synchronize()
print('valid', flush=True)
check_classes(labels + 1, 3, 255, 'PatchSegAuxHead')
torch.cuda.synchronize()
print('not noticed', flush=True)
"""


def test_the_device_names_the_setting(gpu):
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, '-c', CODE], cwd=root, capture_output=True, text=True, timeout=120)
    assert run.returncode and run.stdout.split() == ['valid'], run.stderr
    words = 'PatchSegAuxHead: num_classes=3, but the labels of the batch hold another class; 0 to 2 and 255 (ignored)'
    assert words in run.stderr + run.stdout
