"""The oldest Python and PyTorch that the package and the tools run on, seen in their source.

    python tests/floor.py            # names what is too new; make lint and the tests run it
    python tests/floor.py --write    # with torch 2.1 installed: lists anew what the source uses and this torch has

The standard library's functions are vermin's part, syntax is ruff's. What is left: names, methods and keyword arguments
of torch, each of which must be in torch_2_1.txt or on a line that says "since PyTorch" (and be guarded); what Python
3.8 cannot subscript; methods of built-in types that it lacks.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, Iterator

import torch

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name('torch_2_1.txt')
KNOWS_VERSIONS = ROOT / 'cropr_mm' / 'utils' / 'compat.py'
BUILTINS = {'dict', 'frozenset', 'list', 'set', 'tuple', 'type'}
PLAIN = {f'.{name}' for kind in (str, bytes, int, dict, list, set, Path) for name in dir(kind)}
# Since Python 3.9 and 3.10; vermin sees them on literals alone.
NEW_METHODS = {'bit_count', 'hardlink_to', 'is_relative_to', 'removeprefix', 'removesuffix', 'with_stem'}


def sources() -> list[Path]:
    return sorted(file for folder in ('cropr_mm', 'tools') for file in (ROOT / folder).rglob('*.py'))


class Names(ast.NodeVisitor):
    """What a file uses of torch, as ``(line, use)``, and what Python 3.8 does not know, as ``(line, problem)``."""

    def __init__(self, tree: ast.AST) -> None:
        self.torch: list[tuple[int, str]] = []
        self.python: list[tuple[int, str]] = []
        self._imported: dict[str, str] = {}
        for node in ast.walk(tree):  # also those inside of functions, which come after their first use
            self._note_import(node)
        self.visit(tree)

    def _note_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.split('.')[0]
                self._imported[name.asname or first] = name.name if name.asname else first
                self._use(node.lineno, name.name)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                full = '.' * node.level + f'{node.module or ""}.{name.name}'
                self._imported[name.asname or name.name] = full
                self._use(node.lineno, full)

    def _use(self, line: int, name: str, keyword: str = '') -> None:
        if name.split('.')[0] == 'torch' and not name.startswith('torch.ops.'):
            self.torch.append((line, f'{name} {keyword}'.strip()))

    def _full_name(self, node: ast.AST) -> str | None:
        """``torch.nn.functional.pad`` for ``F.pad``; None where the object is no import."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._imported:
            return None
        return '.'.join([self._imported[node.id], *reversed(parts)])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._full_name(node)
        if name is None:
            self.torch.append((node.lineno, f'.{node.attr}'))  # a method, of a tensor perhaps
            if node.attr in NEW_METHODS:
                self.python.append((node.lineno, f'.{node.attr}() is newer than Python 3.8'))
            self.visit(node.value)
        else:
            self._use(node.lineno, name)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._full_name(node.func)
        for argument in node.keywords:
            if name and argument.arg:
                self._use(argument.value.lineno, name, argument.arg)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        name = self._full_name(node.value) or getattr(node.value, 'id', '')
        if name in BUILTINS or name.startswith(('collections.', 'contextlib.', 're.Pattern', 'os.PathLike')):
            self.python.append((node.lineno, f'{name}[…] outside an annotation; typing has what Python 3.8 takes'))
        self.generic_visit(node)

    # Annotations are not evaluated: every file has `from __future__ import annotations`.
    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        self.visit(node.target)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)


def torch_has(use: str) -> bool:
    """Whether the installed torch has a name, ``.method`` of its objects, or ``name keyword``."""
    if use.startswith('.'):
        return any(hasattr(owner, use[1:]) for owner in (torch.Tensor, torch.nn.Module, torch.optim.Optimizer))
    name, _, keyword = use.partition(' ')
    found: Any = torch
    path = 'torch'
    for part in name.split('.')[1:]:
        path += f'.{part}'
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        found = getattr(found, part)
    return not keyword or _takes(found, keyword)


def _takes(function: Any, keyword: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # written in C++: its documentation begins with its arguments
        return re.search(rf'\b{keyword}\b', inspect.getdoc(function) or '') is not None
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def problems(file: Path, listed: set[str]) -> Iterator[str]:
    """One line for each use of what is newer than the floor."""
    text = file.read_text(encoding='utf-8')
    lines, names = text.splitlines(), Names(ast.parse(text))
    if file != KNOWS_VERSIONS:
        for line, use in sorted(set(names.torch)):
            known = use in listed or (use.startswith('.') and (use in PLAIN or not torch_has(use)))
            if not known and 'since PyTorch' not in lines[line - 1]:
                yield f'{file}:{line}: {use} is not among what PyTorch 2.1 has ({LIST.name})'
        for line, problem in names.python:
            yield f'{file}:{line}: {problem}'


def main(*arguments: str) -> int:
    if arguments == ('--write',):
        if not torch.__version__.startswith('2.1.'):
            print(f'torch {torch.__version__}; the list is made with PyTorch 2.1')
            return 2
        uses = {use for file in sources() for _, use in Names(ast.parse(file.read_text(encoding='utf-8'))).torch}
        LIST.write_text(''.join(f'{use}\n' for use in sorted(uses) if torch_has(use)), encoding='utf-8')
        return 0
    listed = set(LIST.read_text(encoding='utf-8').splitlines())
    found = [problem for file in sources() for problem in problems(file, listed)]
    print('\n'.join(found) or f'{len(sources())} files keep to Python 3.8 and PyTorch 2.1')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
