"""README and docs as text, for tests that hold them to the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / 'README.md'


def page(name: str) -> str:
    return (ROOT / 'docs' / f'{name}.md').read_text()


def blocks(text: str, kind: str) -> list[str]:
    """Code blocks of a kind (``'python'``, ``'diff'``, ``'text'``), in their order."""
    return re.findall(rf'^```{kind}\n(.*?)^```', text, re.S | re.M)


def section(text: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    return text.split(f'\n## {heading}\n')[1].split('\n## ')[0]


def prose(text: str) -> list[str]:
    """Lines that are neither code nor tables nor pictures."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    return [line for line in text.splitlines() if line and not line.startswith(('|', '!['))]


def anchors(text: str) -> set[str]:
    """Names by which headings are linked to, as GitHub and MkDocs make them of plain words."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M), re.M)
    return {re.sub(r'[^\w -]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


def links(text: str) -> list[str]:
    """Targets of links and pictures inside the repository."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    return [link for link in re.findall(r'\]\(([^)]+)\)', text) if not link.startswith(('http://', 'https://'))]
