"""Docstrings carry Sphinx roles (``:class:`Schedule` ``); the site shows them as links to the page that has the object.

An extension of griffe, which reads the package's source. A role that names nothing is a warning, so the build fails.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import griffe

_ROLE = re.compile(r':(?:attr|class|data|exc|func|meth|mod|obj):`([^`]+)`', re.S)
_log = logging.getLogger('mkdocs.plugins.roles')


class Roles(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for owner in _objects(pkg):
            if owner.docstring:
                owner.docstring.value = _ROLE.sub(
                    lambda match, owner=owner: _link(match[1], owner), owner.docstring.value
                )


def _objects(owner: griffe.Object) -> Iterator[griffe.Object]:
    yield owner
    for member in owner.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _link(role: str, owner: griffe.Object) -> str:
    """A link that stays plain code where the object has no page."""
    target = role.lstrip('~.')
    text = target.rpartition('.')[2] if role.startswith('~') else target
    path = _path(target, owner)
    if path is None:
        _log.warning('%s: its docstring refers to `%s`, which is not there', owner.path, role)
    return f'<autoref identifier="{path}" optional><code>{text}</code></autoref>' if path else f'`{text}`'


def _path(target: str, owner: griffe.Object) -> str | None:
    """Canonical path of what a role names, as seen from the object whose docstring it is in."""
    scopes: list[griffe.Object] = []
    scope: griffe.Object | None = owner
    while scope is not None:
        scopes.append(scope)
        scope = scope.parent
    for scope in scopes:
        try:
            return scope[target.split('.')].canonical_path
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            continue
    package = scopes[-1]
    if target.startswith(f'{package.path}.'):
        return _path(target[len(package.path) + 1 :], package)
    *outer, name = target.split('.')
    found = {
        one.canonical_path
        for one in _objects(package)
        if one.name == name and (not outer or (one.parent is not None and one.parent.name == outer[-1]))
    }
    return found.pop() if len(found) == 1 else None
