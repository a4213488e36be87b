"""The tutorial runs from its first cell to its last, and the outputs that are stored in it are fit to be shown.

STORE_TUTORIAL=1 python -m pytest tests/test_apis/test_tutorial.py     stores what it shows now
"""

from __future__ import annotations

import base64
import json
import os
import re

import pytest

from .pages import ROOT, anchors, links

NOTEBOOK = ROOT / 'docs' / 'tutorial.ipynb'
MOST = 150_000  # bytes of all pictures


def execute(folder):
    """The notebook as it is after running in a folder; raises where a cell does."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    where = dict(metadata=dict(path=str(folder)))
    client = NotebookClient(notebook, timeout=900, kernel_name='python3', record_timing=False, resources=where)
    client.execute(env=dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS='1'))
    return notebook


def outputs(notebook):
    return [output for cell in notebook['cells'] for output in cell.get('outputs', ())]


def text(notebook):
    """All that was printed."""
    return ''.join(''.join(o['text']) for o in outputs(notebook) if o.get('name') == 'stdout')


def pictures(notebook):
    found = (output.get('data', {}).get('image/png') for output in outputs(notebook))
    return [base64.b64decode(''.join(data)) for data in found if data]


@pytest.fixture(scope='module')
def stored():
    return json.loads(NOTEBOOK.read_text(encoding='utf-8'))


def check_shown(notebook):
    """What the cells show, up to the numbers."""
    said = text(notebook)
    assert float(re.search(r'mIoU: ([\d.]+)', said)[1]) > 15
    kept = [int(share) for share in re.findall(r'tokens kept (\d+)%', said)]
    assert len(kept) == 4 and kept == sorted(kept, reverse=True) and kept[-1] == 16
    assert re.search(r'dense: \d+ images/s, 1.00×\npruned: \d+ images/s', said)
    before, after = re.search(r'([\d,]+) numbers before, ([\d,]+) after; the outputs differ by 0', said).groups()
    assert int(after.replace(',', '')) < int(before.replace(',', ''))
    assert 'found: ' in said
    assert pictures(notebook)[0].startswith(b'\x89PNG')


def test_stored_outputs_are_of_one_run_without_errors(stored):
    cells = [cell for cell in stored['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output['output_type'] == 'error' or output.get('name') == 'stderr' for output in outputs(stored))
    check_shown(stored)


def test_stored_pictures_are_small(stored):
    assert sum(map(len, pictures(stored))) <= MOST


def test_nothing_of_the_machine_is_stored(stored):
    shown = json.dumps([{**output, 'data': None} for output in outputs(stored)]) + text(stored)
    assert not re.search(r'/(?:work|home|root|tmp|usr|Users)/|\x1b|\d\d:\d\d:\d\d', shown)
    assert set(stored['metadata']) == {'kernelspec', 'language_info'}


def test_links_lead_somewhere_and_prose_is_wrapped(stored):
    prose = '\n'.join(''.join(cell['source']) for cell in stored['cells'] if cell['cell_type'] == 'markdown')
    assert [line for line in prose.splitlines() if len(line) > 120] == []
    found = links(prose)
    assert len(found) > 3
    for link in found:
        file, _, anchor = link.partition('#')
        page = (NOTEBOOK.parent / file).read_text(encoding='utf-8')
        assert not anchor or anchor in anchors(page), link


@pytest.mark.slow
def test_it_runs(tmp_path):
    for library in ('mmseg', 'nbclient', 'nbformat', 'ipykernel', 'matplotlib'):
        pytest.importorskip(library)
    notebook = execute(tmp_path)
    check_shown(notebook)
    assert (tmp_path / 'work' / 'deployed.pth').is_file()
    if os.environ.get('STORE_TUTORIAL'):
        store(notebook)


def store(notebook):
    """Write the notebook with its outputs and nothing of the machine."""
    import nbformat

    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == 'code':
            cell.outputs = [output for output in cell.outputs if output.get('name') != 'stderr']
    kernel = dict(name='python3', display_name='Python 3', language='python')
    notebook.metadata = nbformat.from_dict(dict(kernelspec=kernel, language_info=dict(name='python')))
    nbformat.write(notebook, NOTEBOOK)
