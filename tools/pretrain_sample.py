"""Pre-train the small dense ViTs that the sample configs start from; rewrites a checkpoint that is shipped.

    python tools/pretrain_sample.py                                      # on drawn objects
    python tools/pretrain_sample.py --photos data/cifar10 --amp          # on photographs, on pieces of CamVid

Drawn objects take 0.2 to 0.4 s per iteration on two cores, 3,000 iterations. Photographs are put together to mosaics of
64 × 64 pixels; they need a GPU (minutes) or a night. Drawn crops come from a stream of random numbers of their own, and
the photographs are not among those that scenes of real pixels show, so no object here is part of a scene.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from cropr_mm.checkpoint import load_strictly, read_checkpoint
from cropr_mm.cli.arguments import new_file, new_folder, plain_errors, print_written
from cropr_mm.sample_data import CLASSES, PHOTO_CHECKPOINT, SAMPLE_CHECKPOINT, THINGS, draw_crop
from cropr_mm.sample_data.photo_scenes import PASTED, PHOTO_CLASSES, Places
from cropr_mm.sample_data.photos import PHOTO_THINGS, read_photos
from cropr_mm.sample_data.pretraining import CropAccuracy, CropModel
from cropr_mm.utils.checks import check_integer, check_number, check_suffix
from cropr_mm.utils.io import whole_file
from cropr_mm.utils.progress import track

ARCH = dict(family='vit', embed_dim=128, depth=8, num_heads=4)


class Crops(Dataset):
    """Crops ``first`` to ``first + count`` of a seed, drawn once; ``augment`` turns and mirrors them."""

    def __init__(self, seed: int, first: int, count: int, augment: bool) -> None:
        self.augment = augment
        self.crops = [draw_crop(seed, index) for index in track(range(first, first + count), 'drawing crops')]

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


class Photos(Dataset):
    """Photographs of a folder."""

    def __init__(self, root: Path, split: str, last: float = 1.0) -> None:
        images, classes = read_photos(root, split, last=last)
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self.classes = torch.from_numpy(classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        return dict(images=self.images[rows], category=self.classes[rows])


def draw_places(root: Path, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of CamVid's training images (N, 3, 64, 64) and their stuff classes (N, 64, 64), uint8."""
    places, rng = Places(root, 'train'), np.random.default_rng(seed)
    images, labels = zip(*(places(rng) for _ in range(count)))
    pixels = np.clip(np.rint(np.stack(images)), 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels.copy()), torch.from_numpy(np.stack(labels))


def _whole(batch: Any) -> Any:
    return batch


def _loader(dataset: Dataset, batch: int, shuffle: bool) -> dict[str, Any]:
    sampler = dict(type='InfiniteSampler' if shuffle else 'DefaultSampler', shuffle=shuffle)
    collate = _whole if isinstance(dataset, Photos) else dict(type='default_collate')
    return dict(dataset=dataset, batch_size=batch, num_workers=0, sampler=sampler, collate_fn=collate)


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description='Pre-train the small ViT of the sample configs.')
    parser.add_argument('--photos', type=Path, help='folder with CIFAR-10; without it objects are drawn')
    parser.add_argument('--camvid', type=Path, default=Path('data/camvid'), help='with --photos: what they lie on')
    parser.add_argument('--out', type=new_file, help='checkpoint to write (default: the shipped one)')
    parser.add_argument(
        '--work-dir', type=new_folder, default='work_dirs/pretrain_sample', help='logs (default: %(default)s)'
    )
    parser.add_argument('--iters', type=int, help='default: 3000, with --photos 20000')
    parser.add_argument('--batch', type=int, help='images per step; default: 128, with --photos 512')
    parser.add_argument('--lr', type=float, default=1.5e-3)
    parser.add_argument('--patch-size', type=int, help='default: 8, with --photos 4')
    parser.add_argument('--crops', type=int, default=32000, help='drawn crops to learn from; some more test it')
    parser.add_argument('--places', type=int, default=4000, help='pieces of CamVid; default: %(default)s')
    parser.add_argument('--start', type=Path, help='checkpoint to go on from, as this tool writes it')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, for a GPU')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    from_photos = args.photos is not None
    defaults = dict(
        iters=(3000, 20000), batch=(128, 512), patch_size=(8, 4), out=(Path(SAMPLE_CHECKPOINT), Path(PHOTO_CHECKPOINT))
    )
    for key, choice in defaults.items():
        if getattr(args, key) is None:
            setattr(args, key, choice[from_photos])
    with plain_errors():
        args.out = check_suffix(args.out, ['.safetensors'], '--out')
        for key, least in (('iters', 2), ('batch', 9 if from_photos else 1), ('crops', 1), ('places', 1), ('seed', 0)):
            check_integer(f'--{key}', getattr(args, key), least)
        check_integer('--patch-size', args.patch_size)
        check_number('--lr', args.lr, above=0)
        train: Dataset
        val: Dataset
        if from_photos:
            train, val = Photos(args.photos, 'train', last=PASTED), Photos(args.photos, 'test')
            places = draw_places(args.camvid, args.places, args.seed)
        else:
            train = Crops(args.seed, 0, args.crops, True)
            val = Crops(args.seed, args.crops, min(2000, args.crops), False)

    warm_up, interval = max(1, args.iters // 12), max(500, args.iters // 4)
    if from_photos:
        model = CropModel(ARCH, args.patch_size, len(PHOTO_THINGS), len(PHOTO_CLASSES), places, 0.05)
    else:
        model = CropModel(ARCH, args.patch_size, len(THINGS), len(CLASSES))
    if args.start:
        with plain_errors():
            load_strictly(model.vit, read_checkpoint(str(args.start))[0], f'--start={args.start}')
    runner = Runner(
        model=model,
        work_dir=args.work_dir,
        experiment_name='pretrain_sample',
        default_scope='mmengine',
        randomness=dict(seed=args.seed),
        log_processor=dict(by_epoch=False),
        train_cfg=dict(by_epoch=False, max_iters=args.iters, val_interval=interval),
        train_dataloader=_loader(train, args.batch, True),
        val_dataloader=_loader(val, 500, False),
        val_cfg=dict(),
        val_evaluator=Evaluator(CropAccuracy()),
        optim_wrapper=dict(
            **(dict(type='AmpOptimWrapper', dtype='bfloat16') if args.amp else {}),
            # Each parameter is a group of its own here; fused, a group is one launch.
            optimizer=dict(type='AdamW', lr=args.lr, weight_decay=0.05, fused=torch.cuda.is_available()),
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
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=1),
        ),
    )
    model = runner.train()
    save(model.vit, args.out)
    print(f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB')
    print_written(args.work_dir)


def save(vit: nn.Module, path: Path) -> None:
    """Write the weights in half precision, in one step: a run cut short leaves the old file."""
    from safetensors.torch import save_file

    with whole_file(path) as partial:
        save_file({key: value.half().contiguous() for key, value in vit.state_dict().items()}, partial)
        partial.chmod(0o644)  # the writer leaves it readable by its owner alone


if __name__ == '__main__':
    main()
