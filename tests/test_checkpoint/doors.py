"""Bring files to doors of the package and tell what each answers; run in a process of its own.

python doors.py TASKS.json   →   lines of JSON, two for each file at each door: what begins, and the answer; then 'end'

TASKS: {"proof": a file that no door may let come into being, "doors": {door: [file, …]}}.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine.config.config
import torch
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend, backends
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner import checkpoint as mm

from cropr_mm import CroprHook, CroprViT

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'sample' / 'fcn_cropr-vit_sample.py'
_numbers = itertools.count()
ARCH = dict(family='vit', embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0)


class Model(BaseModel):
    def __init__(self, pruning: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.backbone = CroprViT(ARCH, img_size=16, patch_size=4, pruning=pruning)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> dict[str, Any]:
        return dict(loss=self.backbone(torch.stack(inputs))[0].tokens.mean())


def runner(folder: Path, model: BaseModel, **settings: Any) -> Runner:
    data = [dict(inputs=torch.randn(3, 16, 16), data_samples=0)] * 2
    loader = dict(dataset=data, batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'))
    return Runner(
        model,
        str(folder),
        train_cfg=dict(by_epoch=False, max_iters=2),
        train_dataloader=loader,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        log_level='CRITICAL',
        experiment_name=f'run {next(_numbers)}',
        **settings,
    )


def by_init_cfg(address: str) -> Callable[[str], Any]:
    def open_door(file: str) -> None:
        served = {'address': file}
        mm.get_external_models = lambda: {'m': f'https://host/{Path(file).name}'}  # type: ignore[assignment]
        mm.get_torchvision_models = mm.get_mmcls_models = mm.get_external_models
        torch.hub.download_url_to_file = lambda url, to, progress: shutil.copy(served['address'], to)
        shutil.rmtree(Path(torch.hub.get_dir()) / 'checkpoints', ignore_errors=True)
        checkpoint = address.format(path=file, name=Path(file).name)
        CroprViT(ARCH, img_size=16, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)).init_weights()

    return open_door


class Bucket(BaseStorageBackend):
    def get(self, filepath: str) -> bytes:
        return Path(filepath.partition('s3://')[2]).read_bytes()

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        raise NotImplementedError


def by_tool(tool: str, *rest: str) -> Callable[[str], Any]:
    def open_door(file: str) -> None:
        sys.argv = [f'{tool}.py', str(CONFIG), *(part.format(path=file) for part in rest)]
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')

    return open_door


def doors(folder: Path) -> dict[str, Callable[[str], Any]]:
    backends.register_backend('petrel', Bucket, force=True)
    config = Config.fromfile(CONFIG)  # takes seconds: mmengine reads all of a library's metafiles to find one config
    Config.fromfile = staticmethod(lambda path: copy.deepcopy(config))  # type: ignore[method-assign]
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)  # a runner prints its config neatly: seconds
    torch.hub.set_dir(str(folder / 'hub'))
    started: list[Runner] = []

    def plain() -> Runner:
        if not started:
            started.append(runner(folder, Model()))
            started[0].train_loop  # noqa: B018  # built on first use
        return started[0]

    def load_from(file: str) -> None:
        plain().load_checkpoint(file)

    def resume(file: str) -> None:
        plain().resume(file)

    def retrofit(file: str) -> None:
        pruning = dict(pruner=dict(type='DifficultyPruner', num_classes=3), rate=2)
        hooks = [CroprHook(retrofit=True)]
        runner(folder, Model(pruning), load_from=file, custom_hooks=hooks).train()

    def inference(file: str) -> None:
        mm.load_checkpoint(Model(), file, map_location='cpu', strict=True)

    few = ['--cfg-options', 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    few_train = [option.replace('test_', 'train_') for option in few] + ['model.backbone.init_cfg=None']
    return {
        'init_cfg path': by_init_cfg('{path}'),
        'init_cfg https': by_init_cfg('https://host/{name}'),
        'init_cfg s3': by_init_cfg('s3://{path}'),
        'init_cfg openmmlab': by_init_cfg('openmmlab://m'),
        'init_cfg torchvision': by_init_cfg('torchvision://m'),
        'init_cfg mmcls': by_init_cfg('mmcls://m'),
        'load_from': load_from,
        'resume': resume,
        'retrofit': retrofit,
        'inference': inference,
        'deploy.py': by_tool('deploy', '{path}', str(folder / 'out.pth')),
        'sweep_rates.py': by_tool('sweep_rates', '{path}', '--rates', '8'),
        'speedup.py': by_tool('speedup', '{path}'),
        'report.py': by_tool('report', '{path}', str(folder / 'report.html')),
        'visualize_tokens.py': by_tool('visualize_tokens', '{path}'),
        'analyze_routing.py': by_tool('analyze_routing', '{path}'),
        'test.py': by_tool('test', '{path}', *few),
        'train.py --resume': by_tool('train', '--resume', '{path}', *few_train),
    }


def answer(open_door: Callable[[str], Any], file: str) -> dict[str, Any]:
    answer: dict[str, Any] = dict(refused=False, message='')
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            open_door(file)
        except (ValueError, FileNotFoundError) as error:
            answer.update(refused=True, message=str(error))
        except SystemExit as error:
            answer.update(refused='error: ' in str(error), message=str(error))
        except Exception as error:
            answer.update(message=f'{type(error).__name__}: {error}')
    return answer


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text())
    functions, known = dict(vars(HistoryBuffer)), doors(Path.cwd())
    for door, files in tasks['doors'].items():
        for file in files:
            where = dict(door=door, file=file)
            print(json.dumps(where), flush=True)  # so that a crash has a name
            print(json.dumps({**where, **answer(known[door], file), 'ran': Path(tasks['proof']).exists()}), flush=True)
    assert dict(vars(HistoryBuffer)) == functions, 'a class of mmengine was changed'
    print('end')


if __name__ == '__main__':
    main()
