"""The site: every public name is in the reference, and links of the repository's files work on it."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from types import ModuleType

import pytest

import cropr_mm

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def pages():
    spec = importlib.util.spec_from_file_location('pages', ROOT / 'docs' / 'hooks' / 'pages.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_has_every_public_name():
    reference = '\n'.join(file.read_text(encoding='utf-8') for file in (ROOT / 'docs' / 'api').glob('*.md'))
    named = re.findall(r'^::: cropr_mm\.(\w+)$', reference, re.M)
    named = [name for name in named if not isinstance(getattr(cropr_mm, name), ModuleType)]
    assert sorted(named) == sorted(set(cropr_mm.__all__) - {'__version__'})


@pytest.mark.parametrize(
    ('source', 'written', 'shown'),
    [
        ('README.md', '[swap](docs/swap.md#errors)', '[swap](swap.md#errors)'),
        ('README.md', '![tokens](docs/images/tokens.png)', '![tokens](images/tokens.png)'),
        ('README.md', '<img src="docs/images/tokens.png">', '<img src="images/tokens.png">'),
        ('README.md', '[paper](https://arxiv.org/abs/2412.00965), [here](#install)', None),
        ('README.md', '[configs](configs/ade20k)', '[configs](ade20k.md)'),
        ('README.md', '[cite](CITATION.cff)', 'cite (`CITATION.cff`)'),
        ('docs/swap.md', '[the way in](../README.md#install)', '[the way in](index.md#install)'),
        ('docs/swap.md', '[`tools/train.py`](../tools/train.py)', '`tools/train.py`'),
        ('docs/api/pruners.md', '[swap](../swap.md)', '[swap](../swap.md)'),
        ('configs/ade20k/README.md', '[swap](../../docs/swap.md)', '[swap](swap.md)'),
        ('README.md', '[tutorial](docs/tutorial.ipynb)', '[tutorial](tutorial.md)'),
        ('docs/tutorial.ipynb', '[swap](swap.md)', '[swap](swap.md)'),
    ],
)
def test_links_work_in_both_places(pages, source, written, shown):
    assert pages.relink(written, source) == (shown or written)


def test_a_notebook_becomes_a_page_with_its_outputs(pages):
    picture = dict(output_type='display_data', data={'image/png': 'QUJD\nREVG\n', 'text/plain': ['<Image>']})
    said = [dict(output_type='stream', name='stdout', text=['1\n', '2\n']), dict(data={'text/plain': ['3']})]
    cells = [
        dict(cell_type='markdown', source=['# Title\n', 'text']),
        dict(cell_type='code', source=['print(1)\n', 'x'], outputs=[*said, picture]),
        dict(cell_type='code', source='y', outputs=[]),
    ]
    assert pages.notebook_text(dict(cells=cells)) == (
        '# Title\ntext\n\n```python\nprint(1)\nx\n```\n\n'
        '<img alt="output of the cell above" src="data:image/png;base64,QUJDREVG">\n\n'
        '```text\n1\n2\n3\n```\n\n```python\ny\n```\n'
    )


def test_links_in_code_stay_as_they_are(pages):
    code = '```python\nx[0](docs/swap.md)\n```\n'
    assert pages.relink(code, 'README.md') == code


def test_link_to_nothing_is_a_warning(pages, caplog):
    with caplog.at_level(logging.WARNING):
        pages.relink('[gone](docs/gone.md)', 'README.md')
    assert 'README.md links to docs/gone.md, which is not there' in caplog.text


@pytest.mark.parametrize(
    ('html', 'warns'),
    [
        ('<script src="https://cdn.example.org/a.js"></script>', True),
        ('<link rel="stylesheet" href="//cdn.example.org/a.css">', True),
        ('<link rel="stylesheet" href="assets/a.css"> <a href="https://arxiv.org">paper</a>', False),
    ],
)
def test_whatever_a_view_would_fetch_is_a_warning(pages, caplog, html, warns):
    page = type('Page', (), {'file': type('File', (), {'src_uri': 'index.md'})})
    with caplog.at_level(logging.WARNING):
        assert pages.on_post_page(html, page, None) == html
    assert ('would be fetched' in caplog.text) is warns
