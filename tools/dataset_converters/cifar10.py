"""Convert CIFAR-10's binary version to the folders of images that make_photo_scenes.py and pretrain_sample.py read.

python tools/dataset_converters/cifar10.py cifar-10-binary.tar.gz data/cifar10

::

    OUT/{train,test}/CLASS/0000.png     lossless, in the order of the batches
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from PIL import Image

from cropr_mm.cli.archives import print_counts, read_members
from cropr_mm.cli.arguments import plain_errors
from cropr_mm.sample_data.photos import PHOTO_SIZE, PHOTO_THINGS
from cropr_mm.utils.io import whole_folder
from cropr_mm.utils.progress import progress_bar

IMAGES = dict(train=50000, test=10000)
BATCHES = dict(train=[f'data_batch_{number}.bin' for number in range(1, 6)], test=['test_batch.bin'])
RECORD = 1 + 3 * PHOTO_SIZE**2
# What is read, with or without folders in front (cifar-10-batches-bin).
_MEMBER = re.compile(r'(?:.*/)?((?:data_batch_[1-5]|test_batch)\.bin)')


def convert(source: str | Path, out: str | Path, progress: bool = True) -> dict[str, int]:
    """Write the data set into a folder beside ``out`` that takes its name in one step at the end.

    Args:
        source: a tar or zip archive of the binary version, or such a folder.
        out: folder to write; must not exist, or be empty.
        progress: show a bar, on a terminal.

    Returns:
        Images per split.

    Raises:
        FileNotFoundError: no ``source``.
        FileExistsError: ``out`` is there.
        ValueError: a batch is missing, doubled or not as CIFAR-10's; names it.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'{source} does not exist; cifar-10-binary.tar.gz or such a folder is expected')
    with whole_folder(out) as partial:
        batches = _read(source)
        counts = {split: sum(len(batches[name]) for name in names) for split, names in BATCHES.items()}
        with progress_bar('photographs', sum(counts.values()), progress) as advance:
            for split, names in BATCHES.items():
                for name in PHOTO_THINGS:
                    (partial / split / name).mkdir(parents=True)
                written = [0] * len(PHOTO_THINGS)
                for record in (record for name in names for record in batches[name]):
                    label, planes = int(record[0]), record[1:].reshape(3, PHOTO_SIZE, PHOTO_SIZE)
                    file = partial / split / PHOTO_THINGS[label] / f'{written[label]:04d}.png'
                    Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(file)
                    written[label] += 1
                    advance()
    return counts


def _read(source: Path) -> dict[str, np.ndarray]:
    """Records (N, 3073) uint8 of each batch: a label, then the planes of red, green and blue."""
    found: dict[str, np.ndarray] = {}
    for path, data in read_members(source, _MEMBER):
        name = path.rsplit('/', 1)[-1]
        if name in found:
            raise ValueError(f'{source} holds {name} twice, again as {path}; one is expected')
        if not data or len(data) % RECORD:
            raise ValueError(f'{path} in {source} has {len(data)} bytes; a multiple of {RECORD} is expected')
        found[name] = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
        most = int(found[name][:, 0].max())
        if most >= len(PHOTO_THINGS):
            raise ValueError(f'{path} in {source} holds the label {most}; 0 to {len(PHOTO_THINGS) - 1} is expected')
    wanted = [name for names in BATCHES.values() for name in names]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f'{source} has no {", ".join(missing)}; expected are {", ".join(wanted)}')
    return found


@plain_errors(())
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='cifar-10-binary.tar.gz, or the folder that was unpacked from it')
    parser.add_argument('out', help='folder to write, usually data/cifar10')
    args = parser.parse_args()
    with plain_errors((ValueError, OSError)):
        counts = convert(args.source, args.out)
    print_counts(args.source, args.out, counts, IMAGES)


if __name__ == '__main__':
    main()
