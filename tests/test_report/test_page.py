"""The page is one file that needs nothing else, holds what was traced, and shows names as they are."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import cropr

from cropr_mm.analysis.routing import KEPT
from cropr_mm.benchmark.throughput import Timing

pytest.importorskip('altair')
pytest.importorskip('vl_convert')
Image = pytest.importorskip('PIL.Image')

from cropr_mm.report import charts  # noqa: E402
from cropr_mm.report.page import label_uri, pack_cover, pack_scores, palette_of, photo_uri, write_page  # noqa: E402
from cropr_mm.report.summary import summarize  # noqa: E402

from .small import CLASSES, PALETTE, Classifier, Detector, Segmentor, boxed, contend, item, labelled  # noqa: E402

PRUNING = dict(rate=8, pruner=cropr())
NAME = '</script><img src=x onerror=alert(1)> é & "b"'


class Tags(HTMLParser):
    """All attributes of a page, its text outside of scripts, and its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self.ids = [], '', [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for key, value in attributes if key == 'id']
        if tag == 'script':
            self.scripts.append('')

    def handle_data(self, data):
        if self.cdata_elem == 'script':
            self.scripts[-1] += data
        else:
            self.text += data

    def data(self):
        return json.loads(self.scripts[1])


def write(path, contenders, count=3, **settings):
    rows = range(count)
    summary = summarize(contenders, rows)
    write_page(path, settings.pop('title', 'Title'), contenders, summary, rows, summary.order(), **settings)
    return Tags(path.read_text(encoding='utf-8'))


def pair(model, items, name='pruned'):
    return [contend(model, items, 'dense', dense=True), contend(model, items, name)]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    torch.manual_seed(0)
    contenders = pair(Segmentor(PRUNING), [item(row) for row in range(3)], NAME)
    speeds = [(Timing(2, (1.0, 1.0)), 0.0), (Timing(2, (0.5, 0.5)), 0.4)]
    path = tmp_path_factory.mktemp('page') / 'new' / 'out.html'
    made = write(path, contenders, title=NAME, speeds=speeds, machine='a <machine>')
    return SimpleNamespace(made=made, contenders=contenders, path=path)


def test_nothing_is_fetched(page):
    for _tag, attributes in page.made.tags:
        for key in ('src', 'href', 'action', 'data', 'srcset', 'poster'):
            assert (attributes.get(key) or '#').startswith(('#', 'data:')), attributes
    assert len(page.made.scripts) == 3
    policy = [a['content'] for t, a in page.made.tags if a.get('http-equiv') == 'Content-Security-Policy']
    assert policy[0].startswith("default-src 'none'; img-src data:;") and 'http' not in policy[0]
    style = re.search(r'<style>(.*?)</style>', page.path.read_text(encoding='utf-8'), re.S)[1]
    assert 'url(' not in style and '@import' not in style
    assert [path.name for path in page.path.parent.iterdir()] == ['out.html']


def test_names_are_shown_as_they_are(page):
    assert [tag for tag, attributes in page.made.tags if 'onerror' in attributes] == []
    assert page.made.text.count(NAME) >= 5 and 'a <machine>' in page.made.text
    data = page.made.data()
    assert data['classes'] == list(CLASSES) and data['models'][1]['name'] == NAME
    assert {image['name'] for image in data['images']} == {f'{row} <é>&.jpg' for row in range(3)}
    assert '0 <é>&.jpg' in page.made.text
    assert len(page.made.ids) == len(set(page.made.ids))


def test_the_page_holds_what_was_traced(page):
    data, own = page.made.data(), page.contenders[1]
    for image in data['images']:
        trace = own.trace(int(image['name'].split()[0]), before=True)
        model = image['models'][1]
        left = np.frombuffer(base64.b64decode(model['left']), np.uint8)
        assert left.tolist() == [255 if block == KEPT else block for block in trace.tokens.left.tolist()]
        assert model['grid'] == [6, 6] and model['patch'] == 4 and model['owner'] is None
        for block, (low, high, steps) in model['scores'].items():
            steps = np.frombuffer(base64.b64decode(steps), np.uint8).astype(float)
            expected = trace.tokens.scores[int(block)].numpy()
            assert ((steps == 255) == np.isnan(expected)).all()
            found = low + (high - low) * steps / 253
            known = steps < 255
            assert found[known] == pytest.approx(expected[known], abs=(high - low) / 250 + 1e-4 * abs(high))
        for key, labels in (('after', trace.prediction), ('early', trace.before)):
            classes = np.frombuffer(base64.b64decode(model[key]), np.uint8).reshape(6, 6)
            patches = labels['sem_seg'].reshape(6, 4, 6, 4).transpose(0, 2, 1, 3).reshape(6, 6, 16)
            counts = [[np.bincount(patch, minlength=3) for patch in row] for row in patches]
            assert all(counts[y][x][classes[y, x]] == counts[y][x].max() for y in range(6) for x in range(6))
        covers = [np.frombuffer(base64.b64decode(part), np.uint8) for part in image['covers'][model['cover']]]
        assert covers[1][:30].min() >= 50 and set(covers[0][30:]) <= {0, 1, 2} and covers[1][30:].max() <= 75


def test_the_table_has_the_speeds(page):
    text = ' '.join(page.made.text.split())
    assert '2.00×' in text and '40%' in text and 'images/s' in text
    assert 'a <machine>' in text


def test_the_chart_of_exits_and_its_table_agree(page):
    data = page.made.data()
    rows = data['charts']['right-1']['data']['values']
    assert {row['model'] for row in rows} == {NAME, 'dense'}
    for row in rows:
        assert f'{row["left"]}{row["model"]}{row["right"]:.1%}{row["of"]}' in page.made.text.replace('\n', '')


def test_merged_tokens_bring_their_owners(tmp_path):
    model = Segmentor(dict(rate=6, pruner=dict(type='ToMeReducer')))
    made = write(tmp_path / 'a.html', pair(model, [item(0)]), 1)
    packed = made.data()['images'][0]['models'][1]
    owner = np.frombuffer(base64.b64decode(packed['owner']), np.uint16)
    trace = pair(model, [item(0)])[1].trace(0)
    assert owner.tolist() == [65535 if i < 0 else i for i in trace.tokens.owner.tolist()] and not packed['scores']


def test_detection_shows_boxes_and_says_what_it_does_not_show(tmp_path):
    made = write(tmp_path / 'a.html', pair(Detector(PRUNING), [boxed(row) for row in range(2)]), 2)
    image = made.data()['images'][0]
    assert [box[4] for box in image['truth']['boxes']] == [1, 2, 0] and len(
        image['models'][1]['prediction']['boxes']
    ) == 2
    assert 'before they come back is not shown' in made.text and 'after' not in image['models'][1]


def test_classification_shows_classes_before_and_after_fusion(tmp_path):
    made = write(tmp_path / 'a.html', pair(Classifier(PRUNING), [labelled(row) for row in range(2)]), 2)
    model = made.data()['images'][0]['models'][1]
    assert len(model['prediction']['top']) == 3 and len(model['before']['top']) == 3
    assert made.text.count('Not defined') == 2 and 'classes' not in made.data()['charts']


def test_images_of_many_sizes_without_ground_truth(tmp_path):
    items = [item(row, (18 + 3 * row, 24 - 3 * row), labels=False) for row in range(3)]
    made = write(tmp_path / 'a.html', pair(Segmentor(PRUNING), items))
    assert sorted((image['height'], image['width']) for image in made.data()['images']) == [
        (18, 24),
        (21, 21),
        (24, 18),
    ]
    assert 'No ground truth' in made.text and 'without ground truth' in made.text
    assert all(image['truth'] is None and not image['covers'] for image in made.data()['images'])


def test_a_dense_model_may_stand_beside_a_pruned_one(tmp_path):
    model, items = Segmentor(PRUNING), [item(0)]
    contenders = [*pair(model, items), contend(Segmentor(), items, 'other', dense=True)]
    made = write(tmp_path / 'a.html', contenders, 1)
    assert set(base64.b64decode(made.data()['images'][0]['models'][2]['left'])) == {255}
    assert 'No token leaves' in made.text and 'right-2' not in made.data()['charts']


def test_twelve_photographs_with_1024_tokens_and_two_models_are_within_5_MB(tmp_path):
    made = np.random.default_rng(0)

    def photograph(row):
        image = item(row, (24, 24), labels=False)
        coarse = Image.fromarray(made.integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize((512, 512), Image.BICUBIC)
        noisy = np.asarray(coarse).astype(int) + made.integers(-6, 7, (512, 512, 3))
        image['inputs'] = torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
        image['data_samples'].set_metainfo(dict(img_shape=(512, 512), ori_shape=(512, 512)))
        return image

    model = Segmentor(PRUNING, patch_size=16, img_size=96)
    merging = Segmentor(dict(target_ratio=0.5, pruner=dict(type='ToMeReducer')), patch_size=16, img_size=96)
    items = [photograph(row) for row in range(3)]
    path = tmp_path / 'a.html'
    write(path, [*pair(model, items), contend(merging, items, 'merging')])
    images = (path.stat().st_size - len(charts.javascript())) / 3
    assert images > 1e5 and len(charts.javascript()) + 12 * images < 5e6


# --- parts ------------------------------------------------------------------------------------------------------------


def decode(uri):
    head, _, content = uri.partition(',')
    assert head in ('data:image/png;base64', 'data:image/jpeg;base64')
    return np.asarray(Image.open(__import__('io').BytesIO(base64.b64decode(content))).convert('RGBA'))


def test_a_label_map_comes_back_from_its_picture():
    labels = np.array([[0, 1, 149], [255, -1, 7]])
    palette = np.random.default_rng(0).integers(0, 256, (150, 3))
    pixels = decode(label_uri(labels, palette))
    for y, x in np.ndindex(2, 3):
        known = 0 <= labels[y, x] < 150
        assert (pixels[y, x, 3] == 255) == known
        assert not known or (pixels[y, x, :3] == palette[labels[y, x]]).all()
    assert decode(label_uri(np.zeros((1300, 700), int), palette)).shape[:2] == (640, 345)
    with pytest.raises(ValueError, match='300 classes'):
        label_uri(np.arange(300)[None], np.zeros((300, 3), int))


def test_photographs_are_made_small():
    assert decode(photo_uri(np.full((10, 20, 3), 90, np.uint8))).shape == (10, 20, 4)
    assert decode(photo_uri(np.zeros((1000, 2000, 3), np.uint8))).shape == (320, 640, 4)


def test_scores_that_are_none():
    low, high, steps = pack_scores(torch.tensor([torch.nan, torch.inf, 1.0, 3.0]))
    assert (low, high, list(base64.b64decode(steps))) == (1, 3, [255, 255, 0, 253])
    assert list(base64.b64decode(pack_scores(torch.full((2,), torch.nan))[2])) == [255, 255]
    assert list(base64.b64decode(pack_scores(torch.ones(2))[2])) == [0, 0]


def test_covers_of_few_and_of_many_classes():
    (label, share) = (list(base64.b64decode(part)) for part in pack_cover(torch.tensor([[0.25], [0.0]])))
    assert (label, share) == ([0, 255], [25, 0])
    many = torch.zeros(1, 300)
    many[0, 299], many[0, 1] = 0.5, 0.2
    parts = [base64.b64decode(part) for part in pack_cover(many)]
    kinds = (np.uint16, np.uint8, np.uint16, np.uint8)
    assert [int(np.frombuffer(part, kind)[0]) for part, kind in zip(parts, kinds)] == [299, 50, 1, 20]


def test_colours_of_a_data_set_or_different_ones():
    assert palette_of(dict(palette=PALETTE), 3).tolist() == [list(colour) for colour in PALETTE]
    assert len({tuple(colour) for colour in palette_of({}, 150).tolist()}) == 150
    assert palette_of(dict(palette='random'), 2).shape == palette_of(dict(palette=PALETTE), 2).shape == (2, 3)


@pytest.mark.parametrize('package', ['altair', 'vl_convert'])
def test_a_missing_library_is_named(package, monkeypatch):
    charts.load_altair.cache_clear()
    monkeypatch.setitem(__import__('sys').modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {package}.*pip install "cropr_mm\[report\]"'):
        charts.load_altair()
