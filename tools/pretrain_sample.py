"""Pre-train the small dense ViT that the sample configs start from; rewrites the checkpoint that is shipped.

``python tools/pretrain_sample.py`` takes 0.2 to 0.4 s per iteration on two cores. From scratch on scenes a small ViT
does not learn to tell shapes in reasonable time, and then it does not matter which tokens are kept. On crops of 32 × 32
pixels with one object each it does: the [CLS] token names the object, each patch token the classes of its pixels. The
crops come from a stream of random numbers of their own, so no crop is part of a scene.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.utils.data import Dataset

from cropr_mm import CroprViT
from cropr_mm.cli.arguments import plain_errors
from cropr_mm.sample_data import CLASSES, SAMPLE_CHECKPOINT, THINGS, draw_crop
from cropr_mm.sample_data.scenes import CROP_SIZE
from cropr_mm.utils.checks import check_integer
from cropr_mm.utils.io import whole_file

ARCH = dict(family='vit', embed_dim=128, depth=8, num_heads=4)
PATCH, SCENE = 8, 96
MEAN, STD = 127.5, 58.0


class Crops(Dataset):
    """Crops ``first`` to ``first + count`` of a seed, drawn once; ``augment`` turns and mirrors them."""

    def __init__(self, seed: int, first: int, count: int, augment: bool) -> None:
        self.augment = augment
        print(f'Drawing {count} crops')
        bar, self.crops = ProgressBar(count), []
        for index in range(first, first + count):
            self.crops.append(draw_crop(seed, index))
            if len(self.crops) % 100 == 0:
                bar.update(100)
        print()

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, labels, category = self.crops[index]
        if self.augment:
            turns, mirror = divmod(int(torch.randint(8, ())), 2)
            image, labels = np.rot90(image, turns), np.rot90(labels, turns)
            if mirror:
                image, labels = image[:, ::-1], labels[:, ::-1]
        return dict(
            images=torch.from_numpy(image.transpose(2, 0, 1).copy()),
            labels=torch.from_numpy(labels.copy()),
            category=category,
        )


class CropModel(BaseModel):
    """A ViT for whole scenes, trained on crops: each batch takes another window of the scene's positional embedding.

    So every entry of the embedding is learned, with neighbours that fit, although no image fills the grid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vit = CroprViT(ARCH, img_size=CROP_SIZE, patch_size=PATCH)
        self.object_head = nn.Linear(self.vit.embed_dims, len(THINGS))
        self.patch_head = nn.Linear(self.vit.embed_dims, len(CLASSES))
        self.side, self.window = SCENE // PATCH, CROP_SIZE // PATCH
        self.vit.pos_embed = nn.Parameter(_sine_embedding(self.side, self.vit.embed_dims))

    def forward(self, images: Tensor, labels: Tensor, category: Tensor, mode: str = 'tensor') -> Any:
        """Images (B, 3, 32, 32) and labels (B, 32, 32), uint8; category (B,) int64."""
        slack = self.side - self.window + 1
        row, column = torch.randint(slack, (2,)).tolist() if mode == 'loss' else (slack // 2, slack // 2)
        feature = torch.func.functional_call(
            self.vit, {'pos_embed': self._positions(row, column)}, ((images.float() - MEAN) / STD,)
        )[0]
        assert feature.prefix is not None
        named, patches = self.object_head(feature.prefix[:, 0]), self.patch_head(feature.tokens)
        shares = F.one_hot(labels.long(), len(CLASSES)).float().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        shares = shares.mean((-2, -1)).flatten(1, 2)
        if mode == 'loss':
            return dict(
                loss_object=F.cross_entropy(named, category),
                loss_patch=F.cross_entropy(patches.flatten(0, 1), shares.flatten(0, 1)),
            )
        right = patches.argmax(-1) == shares.argmax(-1)
        return [
            dict(object=float(o), patch=float(p)) for o, p in zip(named.argmax(-1) == category, right.float().mean(-1))
        ]

    def _positions(self, row: int, column: int) -> Tensor:
        positions = self.vit.pos_embed
        assert positions is not None
        window = positions[:, 1:].unflatten(1, (self.side, self.side))
        window = window[:, row : row + self.window, column : column + self.window].flatten(1, 2)
        return torch.cat([positions[:, :1], window], dim=1)


class CropAccuracy(BaseMetric):
    """Share of crops whose object, and of patches whose main class is named right, in percent."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {key: 100 * float(np.mean([result[key] for result in results])) for key in ('object', 'patch')}


def _sine_embedding(side: int, dim: int) -> Tensor:
    """Start of the positional embedding (1, 1 + side², dim): sines of row and column, zero for the [CLS] token."""
    waves = 30.0 ** -(torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(side)[:, None] * waves
    line = 0.5 * torch.cat([angle.sin(), angle.cos()], dim=1)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=-1)
    return F.pad(grid.flatten(0, 1), (0, 0, 1, 0))[None].contiguous()


def _loader(dataset: Dataset, batch: int, shuffle: bool) -> dict[str, Any]:
    sampler = dict(type='InfiniteSampler' if shuffle else 'DefaultSampler', shuffle=shuffle)
    return dict(
        dataset=dataset, batch_size=batch, num_workers=0, sampler=sampler, collate_fn=dict(type='default_collate')
    )


def main() -> None:
    parser = argparse.ArgumentParser(description='Pre-train the small ViT of the sample configs.')
    parser.add_argument(
        '--out', type=Path, default=Path(SAMPLE_CHECKPOINT), help='checkpoint to write (default: %(default)s)'
    )
    parser.add_argument('--work-dir', default='work_dirs/pretrain_sample', help='logs (default: %(default)s)')
    parser.add_argument('--iters', type=int, default=3000)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--lr', type=float, default=1.5e-3)
    parser.add_argument('--crops', type=int, default=32000, help='crops to learn from; some more test it')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with plain_errors():
        if args.out.suffix != '.safetensors':
            raise ValueError(f'--out={args.out}; a name that ends in .safetensors is expected')
        for key, least in (('iters', 2), ('batch', 1), ('crops', 1), ('seed', 0)):
            check_integer(f'--{key}', getattr(args, key), least)

    warm_up = max(1, args.iters // 12)
    runner = Runner(
        model=CropModel(),
        work_dir=args.work_dir,
        experiment_name='pretrain_sample',
        default_scope='mmengine',
        randomness=dict(seed=args.seed),
        log_processor=dict(by_epoch=False),
        train_cfg=dict(by_epoch=False, max_iters=args.iters, val_interval=500),
        train_dataloader=_loader(Crops(args.seed, 0, args.crops, True), args.batch, True),
        val_dataloader=_loader(Crops(args.seed, args.crops, min(2000, args.crops), False), 500, False),
        val_cfg=dict(),
        val_evaluator=Evaluator(CropAccuracy()),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=args.lr, weight_decay=0.05),
            clip_grad=dict(max_norm=1.0),
            paramwise_cfg=dict(
                norm_decay_mult=0,
                bias_decay_mult=0,
                flat_decay_mult=0,
                custom_keys=dict(pos_embed=dict(decay_mult=0), cls_token=dict(decay_mult=0)),
            ),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.02, by_epoch=False, end=warm_up),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=args.iters, T_max=args.iters - warm_up),
        ],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=100),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=1),
        ),
    )
    model = runner.train()
    save(model.vit, args.out)
    print(f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB')


def save(vit: nn.Module, path: Path) -> None:
    """Write the weights in half precision, in one step: a run cut short leaves the old file."""
    from safetensors.torch import save_file

    with whole_file(path) as partial:
        save_file({key: value.half().contiguous() for key, value in vit.state_dict().items()}, partial)
        partial.chmod(0o644)  # the writer leaves it readable by its owner alone


if __name__ == '__main__':
    main()
