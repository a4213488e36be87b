"""README and docs: their size, their links, and that neither repeats the other."""

import re

import pytest

from ..test_heads import table
from .pages import README, ROOT, anchors, blocks, links, page, prose

DOCS = sorted((ROOT / 'docs').glob('*.md'))
PAGES = [README, *DOCS, ROOT / 'results' / 'NOTES.md']


def name(path):
    return str(path.relative_to(ROOT))


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1150


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_prose_is_wrapped(path):
    assert [line for line in prose(path.read_text()) if len(line) > 120] == []


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_links_lead_somewhere(path):
    for link in links(path.read_text()):
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def sentences(text):
    joined = ' '.join(line.strip() for line in prose(text) if not line.startswith('#'))
    return {part.strip(' -') for part in re.split(r'(?<=[.:;])\s', joined) if len(part) > 40}


@pytest.mark.parametrize('path', DOCS, ids=name)
def test_readme_and_docs_do_not_repeat_each_other(path):
    ours, theirs = README.read_text(), path.read_text()
    rows = [
        {line for line in text.splitlines() if line.startswith('| ') and not line.startswith('| ---')}
        for text in (ours, theirs)
    ]
    assert not rows[0] & rows[1]
    for kind in ('python', 'bash', 'diff'):
        assert not set(blocks(ours, kind)) & set(blocks(theirs, kind))
    assert not sentences(ours) & sentences(theirs)


def test_the_readme_counts_what_the_tests_run():
    counts = re.findall(r'(\d+) of (\d+)', table.summary())
    text = ' '.join(README.read_text().split())
    assert f'{counts[0][0]} of {counts[0][1]} config folders of mmsegmentation and ' in text
    assert f'{counts[1][0]} of {counts[1][1]} of mmdetection' in text
    assert table.further() in page('heads')


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_tools_have_the_options_that_pages_name(path):
    """In commands such as ``python tools/test.py CONFIG --tta``, over several lines too."""
    text = path.read_text().replace('\\\n', ' ')
    shared = ''.join(file.read_text() for file in (ROOT / 'cropr_mm' / 'cli').glob('*.py'))
    for tool, arguments in re.findall(r'python (tools/\w+\.py)([^`\n]*)', text):
        source = (ROOT / tool).read_text() + shared
        assert [option for option in re.findall(r'--[\w-]+', arguments) if f"'{option}'" not in source] == []
