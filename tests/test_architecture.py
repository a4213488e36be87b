"""No import runs back up: docs/architecture.md says which way they go, and this reads it there.

Imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'cropr_mm'
FILES = sorted(file for folder in ('cropr_mm', 'tools') for file in (ROOT / folder).rglob('*.py'))


def floors() -> dict[str, int]:
    """Room → floor, from the line of the page that has arrows from ``utils`` to ``tools``."""
    page = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    line = re.search(r'^utils\b.*→ tools$', page, re.M)
    assert line, 'docs/architecture.md has no line "utils → … → tools"'
    return {room: i for i, floor in enumerate(line[0].split(' → ')) for room in floor.split(', ')}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].replace('.py', '') if PACKAGE in file.parents else 'tools'


def file_of(base: Path, names: list[str]) -> Path | None:
    """The file that ``names``, seen from the folder ``base``, are a module or an object of."""
    for name in names:
        if (base / name).is_dir():
            base = base / name
        else:
            return base / f'{name}.py' if (base / f'{name}.py').exists() else base / '__init__.py'
    return base / '__init__.py'


def imported(file: Path, text: str) -> set[Path]:
    """Files of the package that a file's source imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            inside, start = (node.module or '').split('.') if node.module else [], ROOT
            if node.level:
                start = file.parents[node.level - 1]
            elif inside[0] != 'cropr_mm':
                continue
            found |= {file_of(start, [*inside, name.name]) for name in node.names}
        elif isinstance(node, ast.Import):
            paths = [name.name.split('.') for name in node.names]
            found |= {file_of(ROOT, path) for path in paths if path[0] == 'cropr_mm'}
    return found - {file}


@pytest.fixture(scope='module')
def graph() -> dict[Path, set[Path]]:
    return {file: imported(file, file.read_text(encoding='utf-8')) for file in FILES}


def test_the_page_names_every_room():
    rooms = {room_of(file) for file in FILES} - {'__init__', 'version'}
    assert rooms == set(floors())


def test_no_import_runs_back_up(graph):
    floor = floors()
    floor.update(version=0, __init__=floor['cli'])  # the package's front door: only command lines go through it
    back_up = [
        f'{file.relative_to(ROOT)} ({room_of(file)}) imports {target.relative_to(ROOT)}'
        for file, targets in graph.items()
        for target in targets
        if floor[room_of(target)] > floor[room_of(file)]
    ]
    assert not back_up, '\n'.join(sorted(back_up))


def test_no_circle_of_imports(graph):
    left = dict(graph)
    while left:  # leaves go, until nothing or a circle is left
        leaves = [file for file, targets in left.items() if not targets & left.keys()]
        assert leaves, 'a circle of imports among ' + ', '.join(str(file.relative_to(ROOT)) for file in left)
        for file in leaves:
            del left[file]


def test_imports_of_every_kind_are_seen():
    source = """
import cropr_mm.engine.fsdp
from .models.archs import Arch
from . import swap
def later():
    from .tokens import SparseFeature
"""
    found = {str(path.relative_to(PACKAGE)) for path in imported(PACKAGE / 'deploy.py', source)}
    assert found == {'engine/fsdp.py', 'models/archs.py', 'swap.py', 'tokens.py'}
