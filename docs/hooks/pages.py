"""Pages of the site that lie elsewhere in the repository, and links that work in both places.

README.md is the site's front page; CONTRIBUTING.md and CHANGELOG.md and others come along, and a notebook with the
outputs that are stored in it. Links are written as they
work in the repository. On the site, those to a page of the site lead there, and those to other files become the file's
name, as the site cannot know where the repository is hosted.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# file in the repository → page of the site; without those that are not there
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'results/NOTES.md': 'notes.md',
    'docs/tutorial.ipynb': 'tutorial.md',
    'configs/ade20k/README.md': 'ade20k.md',
    'configs/coco/README.md': 'coco.md',
    'configs/imagenet/README.md': 'imagenet.md',
    'configs/photos/README.md': 'photos.md',
    'configs/camvid/README.md': 'camvid.md',
    'configs/nuclei/README.md': 'nuclei.md',
}
PAGES = {source: page for source, page in PAGES.items() if (ROOT / source).exists()}
_LINK = re.compile(r'(?P<image>!?)\[(?P<text>(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*)\]\((?P<to>[^)\s]+)\)')
_SOURCE = re.compile(r'(?P<attribute>src|srcset|href)="(?P<to>[^"]+)"')
_FETCHED = re.compile(
    r'<(?:script|link(?! rel="canonical")|img|iframe|source|video)\b[^>]*(?:src|href|srcset)="(?:https?:)?//[^>]*>'
)
_FENCE = re.compile(r'^( *)(```|~~~).*?^\1\2', re.S | re.M)
_log = logging.getLogger('mkdocs.plugins.pages')


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=page_text(ROOT / source)))
    return files


def on_serve(server: Any, config: Any, builder: Any) -> Any:
    for path in (*PAGES, 'cropr_mm'):
        server.watch(str(ROOT / path))
    return server


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return relink(markdown, _source_of(page.file.src_uri))


def on_post_page(output: str, page: Any, config: Any) -> str:
    for tag in _FETCHED.findall(output):
        _log.warning('%s: %s would be fetched when the page is viewed', page.file.src_uri, tag)
    return output


def page_text(file: Path) -> str:
    """A file of the repository as Markdown."""
    text = file.read_text(encoding='utf-8')
    return notebook_text(json.loads(text)) if file.suffix == '.ipynb' else text


def notebook_text(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: code and its outputs in fences, pictures as part of the page."""
    parts = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        parts.append(source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
        said = ''
        for output in cell.get('outputs', ()):
            data = output.get('data', {})
            if 'image/png' in data:
                picture = ''.join(data['image/png']).replace('\n', '')
                parts.append(f'<img alt="output of the cell above" src="data:image/png;base64,{picture}">')
            else:
                said += ''.join(output.get('text', data.get('text/plain', ''))).rstrip('\n') + '\n'
        if said:
            parts.append(f'```text\n{said}```')
    return '\n\n'.join(parts) + '\n'


def relink(markdown: str, source: str) -> str:
    """A file of the repository with its links as they are on the site."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):  # code stays as it is
        parts += [_relink(markdown[end : fence.start()], source), fence[0]]
        end = fence.end()
    return ''.join([*parts, _relink(markdown[end:], source)])


def _source_of(page: str) -> str:
    """Path of a page's file in the repository."""
    return next((source for source, generated in PAGES.items() if generated == page), f'docs/{page}')


def _relink(markdown: str, source: str) -> str:
    def link(match: re.Match[str]) -> str:
        text = _relink(match['text'], source)
        to = _target(match['to'], source)
        if to is not None:
            return f'{match["image"]}[{text}]({to})'
        name = match['to'].partition('#')[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        return text if path in text else f'{text} (`{path}`)'

    def attribute(match: re.Match[str]) -> str:
        return f'{match["attribute"]}="{_target(match["to"], source) or match["to"]}"'

    return _SOURCE.sub(attribute, _LINK.sub(link, markdown))


def _target(to: str, source: str) -> str | None:
    """Where a link of a file in the repository leads on the site; None: to a file that is no page."""
    if re.match(r'[a-z]+:|#|//', to):
        return to
    path, hash_, anchor = to.partition('#')
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / path).exists():
        _log.warning('%s links to %s, which is not there', source, to)
    page = PAGES.get(path) or PAGES.get(f'{path}/README.md')
    if page is None and path.startswith('docs/'):
        page = path[len('docs/') :]
    if page is None:
        return None
    here = posixpath.dirname(PAGES.get(source, source[len('docs/') :]))
    return posixpath.relpath(page, here or '.') + hash_ + anchor
