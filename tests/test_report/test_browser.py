"""The page in Chromium: slider, hover, keys, linked views; no error, no request."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import cropr

from cropr_mm.analysis.routing import KEPT

pytest.importorskip('altair')
pytest.importorskip('vl_convert')
playwright = pytest.importorskip('playwright.sync_api')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if CHROMIUM is None:
    pytest.skip('no Chromium is installed', allow_module_level=True)

from .small import Detector, Segmentor, boxed, contend, item  # noqa: E402
from .test_page import write  # noqa: E402

PRUNING = dict(rate=8, pruner=cropr())
FADED = """number => [...document.querySelectorAll(`.tokens[data-model="${number}"] path`)]
    .filter(path => path.getAttribute('fill') === 'var(--fade)' && path.getAttribute('fill-opacity') > 0.5).length"""
FILLS = """number => [...document.querySelectorAll(`.tokens[data-model="${number}"] path`)]
    .filter(path => path.getAttribute('fill')?.startsWith('hsl')).map(path => path.getAttribute('fill'))"""


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A page with a pruned model, and with one that merges, of the same images."""
    torch.manual_seed(0)
    folder, items = tmp_path_factory.mktemp('site'), [item(row) for row in range(3)]
    pruned = contend(Segmentor(PRUNING), items, 'pruned')
    dense = contend(pruned.model, items, 'dense', dense=True)
    merged = contend(Segmentor(dict(rate=6, pruner=dict(type='ToMeReducer'))), items, 'merged')
    made = write(folder / 'a.html', [dense, pruned, merged])
    return SimpleNamespace(file=folder / 'a.html', data=made.data(), pruned=pruned, merged=merged)


class Opened:
    """A page, and all that went wrong in it."""

    def __init__(self, browser, file, **settings):
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.problems, self.requests = [], []
        self.page.on('console', lambda message: self.problems.append(message.text))
        self.page.on('pageerror', lambda error: self.problems.append(str(error)))
        self.page.on('request', lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector('body[data-ready]')

    def slide(self, block):
        self.page.locator('#block').fill(str(block))
        self.page.wait_for_function('block => document.querySelector("#block-now").value === block', arg=str(block))
        self.page.wait_for_timeout(60)  # two frames in which Vega draws

    def told(self, number):
        keys, values = (self.page.locator(f'[data-told="{number}"] {tag}').all_inner_texts() for tag in ('dt', 'dd'))
        return dict(zip(keys, values))

    def hover(self, number, row, column):
        box = self.page.locator(f'.tokens[data-model="{number}"]').bounding_box()
        side = box['width'] / 6
        self.page.mouse.move(box['x'] + (column + 0.5) * side, box['y'] + (row + 0.5) * side)
        self.page.wait_for_timeout(60)


@pytest.fixture
def opened(browser, site):
    page = Opened(browser, site.file, viewport=dict(width=1300, height=1500))
    yield page
    page.context.close()
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith('data:')] == [site.file.as_uri()]


def left_of(contender, site, image=0):
    return contender.trace(int(site.data['images'][image]['name'].split()[0])).tokens


def test_the_slider_fades_the_tokens_that_have_left_in_all_pictures(opened, site):
    left = left_of(site.pruned, site).left
    tokens = left_of(site.merged, site)
    for block in (0, 2, 3, 4, 1):
        opened.slide(block)
        gone = 0 if block == 4 else int(((left != KEPT) & (left < block)).sum())  # the last block has all of them
        assert opened.page.evaluate(FADED, 1) == gone
        assert opened.page.locator('[data-count="1"]').inner_text().startswith(f'{36 - gone} of 36 tokens')
        groups = {}
        for i in range(36):
            at = i
            while tokens.owner[at] >= 0 and tokens.left[at] < block < 4:
                at = int(tokens.owner[at])
            groups.setdefault(at, []).append(i)
        shared = [group for group in groups.values() if len(group) > 1]
        fills = opened.page.evaluate(FILLS, 2)
        assert len(fills) == sum(map(len, shared)) and len(set(fills)) == len(shared)
        assert opened.page.evaluate(FADED, 2) == 0  # merged tokens do not fade
    assert opened.page.locator('[data-chart="classes"] svg').count() == 1


def test_the_chart_of_classes_moves_with_the_slider(opened):
    places = []
    for block in (0, 3):
        opened.slide(block)
        paths = opened.page.locator('[data-chart="classes"] .mark-symbol.role-mark path')
        places.append([path.get_attribute('transform') for path in paths.all()])
    assert len(places[0]) == len(places[1]) == 6 and places[0] != places[1]


def test_hovering_shows_the_token_in_all_models(opened, site):
    image, tokens = site.data['images'][0], left_of(site.pruned, site)
    opened.hover(1, 2, 4)
    for number in (1, 2):
        assert opened.told(number)['token'] == 'row 2, column 4'
    told, left = opened.told(1), int(tokens.left[16])
    assert told['left'] == ('never' if left == KEPT else f'after block {left}')
    found = re.findall(r'(\d+):\s(-?[\d.e-]+)\s\(above\s\d+\s%\)', told['score in block'])
    assert [int(block) for block, _ in found] == [
        b for b in range(4) if b in tokens.scores and (left == KEPT or b <= left)
    ]
    for block, value in found:
        low, high, _ = image['models'][1]['scores'][block]
        assert float(value) == pytest.approx(float(tokens.scores[int(block)][16]), abs=(high - low) / 200 + 0.01)
    assert set(told) == {'token', 'left', 'score in block', 'class share', 'prediction', 'before fusion'}
    assert '%' in told['class share'] and 'score in block' not in opened.told(2)
    tip = opened.page.locator('#vg-tooltip-element')
    assert tip.is_visible() and 'row 2, column 4' in tip.inner_text()


def test_keys_go_from_token_to_token_and_are_read_aloud(opened):
    opened.page.locator('.tokens[data-model="2"]').focus()
    for key in ('ArrowRight', 'ArrowRight', 'ArrowDown', 'ArrowRight', 'ArrowLeft', 'ArrowUp', 'ArrowUp'):
        opened.page.keyboard.press(key)
    assert opened.told(2)['token'] == opened.told(1)['token'] == 'row 0, column 1'
    assert 'token: row 0, column 1' in opened.page.locator('#status').inner_text()
    opened.page.locator('#block').focus()
    before = opened.page.locator('#block-now').inner_text()
    opened.page.keyboard.press('ArrowLeft')
    assert int(opened.page.locator('#block-now').inner_text()) == int(before) - 1


def test_another_image_and_other_ways_to_look(opened, site):
    opened.page.locator('.thumbs button').nth(1).click()
    assert site.data['images'][1]['name'] in opened.page.locator('#about-image').inner_text()
    assert opened.page.locator('.thumbs [aria-pressed=true]').count() == 1
    opened.slide(3)
    opened.page.locator('#mode').select_option('exit')
    opened.page.wait_for_timeout(60)
    assert opened.page.evaluate(FADED, 1) == 0
    assert opened.page.locator('.colours:visible').get_attribute('data-mode') == 'exit'
    colours = opened.page.evaluate(
        """[...document.querySelectorAll('.tokens[data-model="1"] path')].map(path => path.getAttribute('fill'))"""
    )
    left = left_of(site.pruned, site, 1).left
    shares = {f'#fde725 {100 * block / 4:.1f}%)' for block in left[left < 3].unique().tolist() if block != KEPT}
    assert {re.search('#fde725.*', colour)[0] for colour in colours if 'color-mix' in (colour or '')} == shares
    opened.page.locator('#mode').select_option('score')
    for under in ('truth', 'prediction'):
        opened.page.locator('#under').select_option(under)
        opened.page.wait_for_timeout(60)
        assert opened.page.locator('.tokens[data-model="1"] image').count() == 2
    opened.page.locator('#play').click()
    opened.page.wait_for_function('document.querySelector("#block-now").value !== "3"')
    opened.page.locator('#play').click()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_shows_it_in_its_width(browser, site, scheme):
    page = Opened(browser, site.file, viewport=dict(width=390, height=800), color_scheme=scheme)
    assert page.page.evaluate('document.documentElement.scrollWidth') == 390
    background, ink = page.page.evaluate(
        '[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]'
    )
    brightness = [sum(map(int, re.findall(r'\d+', colour)[:3])) for colour in (background, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == 'light') and abs(brightness[0] - brightness[1]) > 400
    assert page.page.locator('.tokens[data-model="1"] svg').bounding_box()['width'] > 330
    page.context.close()
    assert page.problems == []


def test_everything_has_a_name_for_a_screen_reader(opened):
    nameless = """[...document.querySelectorAll('button, select, input, [role], [tabindex]')]
        .filter(node => !node.closest('svg') && !(node.ariaLabel || node.getAttribute('aria-labelledby')
            || node.labels?.length || node.textContent.trim() || node.role === 'status'))
        .map(node => node.outerHTML)"""
    assert opened.page.evaluate(nameless) == []
    assert opened.page.locator('h1').count() == 1 and opened.page.locator('html').get_attribute('lang') == 'en'


def test_more_classes_than_a_byte_counts(browser, tmp_path):
    pruned = contend(Segmentor(PRUNING), [item(0)], 'pruned')
    named = replace(pruned, meta=dict(classes=[f'class no. {i}' for i in range(300)]))
    write(tmp_path / 'a.html', [replace(named, name='dense', reduction=None), named], 1)
    page = Opened(browser, tmp_path / 'a.html', viewport=dict(width=1300, height=1500))
    page.hover(1, 0, 0)
    label = int(item(0)['data_samples'].gt_sem_seg.data[0, 0, 0])
    told = page.told(1)
    assert told['class share'].startswith(f'class no. {label} ')
    assert told['prediction'] in {f'class no. {i}' for i in range(3)}
    legend = page.page.locator('#legend li').all_inner_texts()
    assert f'class no. {label}' in legend and len(legend) <= 3
    page.context.close()
    assert page.problems == []


def test_boxes_are_drawn(browser, tmp_path):
    items = [boxed(row) for row in range(2)]
    pruned = contend(Detector(PRUNING), items, 'pruned')
    write(tmp_path / 'a.html', [contend(pruned.model, items, 'dense', dense=True), pruned], 2)
    page = Opened(browser, tmp_path / 'a.html', viewport=dict(width=1300, height=1500))
    frames = '[data-shows="{}"][data-model="{}"] path[stroke-width="2"]'
    assert page.page.locator(frames.format('truth', 0)).count() == 3
    assert page.page.locator(frames.format('prediction', 1)).count() == 2
    page.context.close()
    assert page.problems == []
