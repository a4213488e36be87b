"""The checkpoint that ships with the package: loads as any published one, and has learned what it is there for."""

import numpy as np
import torch
from safetensors.torch import load_file

from cropr_mm import CroprViT
from cropr_mm.sample_data import SAMPLE_CHECKPOINT, THINGS, draw_crop

ARCH = dict(family='vit', embed_dim=128, depth=8, num_heads=4)


def test_loads_through_init_cfg():
    vit = CroprViT(ARCH, img_size=96, patch_size=8, init_cfg=dict(type='Pretrained', checkpoint=SAMPLE_CHECKPOINT))
    vit.init_weights()
    for name, value in load_file(SAMPLE_CHECKPOINT).items():
        torch.testing.assert_close(vit.state_dict()[name], value.float(), rtol=0, atol=0)


def test_a_linear_probe_tells_the_shapes_of_unseen_crops():
    crops = [draw_crop(1, index) for index in range(400)]
    images = torch.from_numpy(np.stack([image for image, _, _ in crops])).permute(0, 3, 1, 2).float()
    category = torch.tensor([category for _, _, category in crops])
    state = load_file(SAMPLE_CHECKPOINT)
    window = state['pos_embed'][:, 1:].unflatten(1, (12, 12))[:, 4:8, 4:8].flatten(1, 2)
    vit = CroprViT(ARCH, img_size=32, patch_size=8).eval()
    vit.load_state_dict({**state, 'pos_embed': torch.cat([state['pos_embed'][:, :1], window], dim=1)})
    with torch.no_grad():
        named = vit((images - 127.5) / 58)[0].prefix[:, 0]
    centres = torch.stack([named[:200][category[:200] == number].mean(0) for number in range(len(THINGS))])
    found = torch.cdist(named[200:], centres).argmin(1)
    assert (found == category[200:]).float().mean() > 0.9  # 0.5 is what colours alone give
