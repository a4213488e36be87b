'use strict';
// Between the controls of the page and the Vega views: which image, which block, which token.
const data = JSON.parse(document.getElementById('data').textContent);
const NONE = 65535, KEPT = 255, STEPS = 253, WIDTH = 360;
const find = (query) => document.querySelector(query);
const all = (query) => [...document.querySelectorAll(query)];
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const words = (text) => new Uint16Array(bytes(text).buffer);
const NO_CLASS = data.classes.length < 255 ? 255 : NONE;
const labelsOf = (text) => (NO_CLASS === NONE ? words(text) : bytes(text));
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const className = (label) => data.classes[label] ?? `class ${label}`;

// --- the tokens of one model in one image ---------------------------------------------------------------------

function unpack(image, number) {
  const packed = image.models[number], model = data.models[number];
  const [rows, columns] = packed.grid;
  const cover = image.covers[packed.cover];
  const tokens = {
    rows, columns, number, patch: packed.patch, depth: model.depth, fusion: model.fusion,
    left: bytes(packed.left),
    owner: packed.owner && words(packed.owner),
    after: packed.after && labelsOf(packed.after),
    early: packed.early && labelsOf(packed.early),
    cover: cover?.map((part, i) => (i % 2 ? bytes(part) : labelsOf(part))),
    scores: Object.entries(packed.scores).map(([block, [low, high, steps]]) => ({block: +block, low, high, steps: bytes(steps)})),
  };
  for (const score of tokens.scores) {
    const below = new Uint32Array(257); // how many tokens have a lower step
    score.steps.forEach((step) => { if (step < KEPT) below[step + 1]++; });
    for (let step = 1; step <= KEPT; step++) below[step] += below[step - 1];
    score.rank = (step) => below[step] / Math.max(below[KEPT] - 1, 1);
  }
  return tokens;
}

const returned = (tokens, block) => tokens.fusion && block >= tokens.depth - 1;
const hasLeft = (tokens, i, block) => tokens.left[i] !== KEPT && tokens.left[i] < block;

// The token that stands for token i in a block: itself, or what it merged into.
function root(tokens, i, block) {
  while (tokens.owner && hasLeft(tokens, i, block) && tokens.owner[i] !== NONE) i = tokens.owner[i];
  return i;
}

// From dark purple to yellow; the two ways round differ, as do the keys beside the controls.
const ramp = (share, way) => `color-mix(in oklch ${way} hue, #440154, #fde725 ${(100 * share).toFixed(1)}%)`;

function statesIn(tokens, block, mode) {
  const count = tokens.rows * tokens.columns, back = returned(tokens, block);
  const roots = Array.from({length: count}, (_, i) => (back ? i : root(tokens, i, block)));
  const sizes = new Uint32Array(count);
  roots.forEach((i) => sizes[i]++);
  const score = mode === 'score' && tokens.scores.find((one) => one.block === block);
  return roots.map((at, i) => {
    const gone = !back && hasLeft(tokens, at, block);
    if (mode === 'exit' && hasLeft(tokens, i, block)) {
      return {fill: ramp(tokens.left[i] / (tokens.depth - 1), 'increasing'), opacity: 0.8};
    }
    if (gone) return {fill: 'var(--fade)', opacity: 0.88};
    if (score && score.steps[i] < KEPT) return {fill: ramp(score.rank(score.steps[i]), 'decreasing'), opacity: 0.7};
    if (mode === 'fade' && sizes[at] > 1) return {fill: `hsl(${(at * 137.5) % 360} 75% 50%)`, opacity: 0.5};
    return {fill: 'var(--fade)', opacity: 0};
  });
}

const place = (tokens, i) => `row ${Math.floor(i / tokens.columns)}, column ${i % tokens.columns}`;

function about(tokens, i) {
  const told = {token: place(tokens, i)};
  const merged = tokens.owner && tokens.owner[i] !== NONE;
  if (tokens.left[i] === KEPT) told.left = 'never';
  else told.left = `after block ${tokens.left[i]}` + (merged ? `, merged into ${place(tokens, tokens.owner[i])}` : '');
  const scores = tokens.scores.filter((score) => score.steps[i] < KEPT).map((score) => {
    const value = score.low + (score.high - score.low) * score.steps[i] / STEPS;
    return `${score.block}: ${value.toPrecision(3)} (above ${percent(score.rank(score.steps[i]), 0)})`.replace(/ /g, '\u00a0');
  });
  if (scores.length) told['score in block'] = scores.join(' · ');
  if (tokens.cover) {
    const pairs = [0, 2].map((k) => [tokens.cover[k]?.[i] ?? NO_CLASS, tokens.cover[k + 1]?.[i]]);
    const parts = pairs.filter(([label, part]) => label !== NO_CLASS && part);
    told['class share'] = parts.map(([label, part]) => `${className(label)} ${part} %`).join(', ') || (data.kind === 'detection' ? 'background' : 'no label');
  }
  if (tokens.after && tokens.after[i] !== NO_CLASS) {
    told.prediction = className(tokens.after[i]);
    if (tokens.early && tokens.early[i] !== NO_CLASS) told['before fusion'] = className(tokens.early[i]);
  }
  return told;
}

// --- views ----------------------------------------------------------------------------------------------------

const now = {image: 0, block: data.start, tokens: {}, at: null};
const pictures = [], charts = [];
const options = {actions: false, renderer: 'svg', tooltip: {theme: 'custom'}};

const scale = (image) => WIDTH / image.width;

function drawn(labels, image, dash) {
  return (labels?.boxes ?? []).map(([x, y, x2, y2, label, score]) => ({
    x: x * scale(image), y: y * scale(image), x2: x2 * scale(image), y2: y2 * scale(image),
    text_y: Math.max(y * scale(image), 14), colour: data.palette[label], dash: dash ?? [],
    text: data.classes.length > 1 ? className(label) : '', tip: className(label) + (score === null ? '' : ` ${score.toFixed(2)}`),
  }));
}

function layersOf(kind, number) {
  const image = data.images[now.image], model = image.models[number];
  const photo = {url: image.photo, opacity: 1, smooth: true};
  const over = (labels, opacity = 0.72) => (labels?.png ? [photo, {url: labels.png, opacity, smooth: false}] : [photo]);
  if (kind === 'truth') return {pictures: over(image.truth), boxes: drawn(image.truth, image)};
  if (kind === 'prediction') return {pictures: over(model.prediction), boxes: drawn(model.prediction, image)};
  if (kind === 'unlike') {
    const boxes = (model.unlike?.boxes ?? []).map((box) => [...box.slice(0, 5), null, box[5]]);
    const made = drawn({boxes}, image).map((box, i) => ({...box, colour: UNLIKE[boxes[i][6]], dash: boxes[i][6] ? [] : [5, 3]}));
    const dim = {...photo, opacity: 0.35};
    return {pictures: model.unlike?.png ? [dim, {url: model.unlike.png, opacity: 0.9, smooth: false}] : [dim], boxes: made};
  }
  const under = kind === 'tokens' ? find('#under').value : 'photo';
  return under === 'photo' ? {pictures: [photo], boxes: []} : layersOf(under, number);
}

const UNLIKE = ['#e03131', '#1971c2', '#868e96'];

function tokenRows(number) {
  const image = data.images[now.image], tokens = now.tokens[number], mode = find('#mode').value;
  const states = Array.from({length: tokens.depth}, (_, block) => statesIn(tokens, block, mode));
  const side = tokens.patch * scale(image), height = image.height * scale(image);
  const found = [];
  for (let i = 0; i < tokens.rows * tokens.columns; i++) {
    const x = (i % tokens.columns) * side, y = Math.floor(i / tokens.columns) * side;
    if (x >= WIDTH || y >= height) continue; // padding
    found.push({
      i, x, y, x2: Math.min(x + side, WIDTH), y2: Math.min(y + side, height), tip: about(tokens, i),
      fill: states.map((state) => state[i].fill), opacity: states.map((state) => state[i].opacity),
    });
  }
  return found;
}

const blockOf = (number) => Math.min(now.block, data.models[number].depth - 1);

function showImage() {
  const image = data.images[now.image];
  now.tokens = {};
  image.models.forEach((model, number) => { if (model.left) now.tokens[number] = unpack(image, number); });
  all('.thumbs button').forEach((button) => button.setAttribute('aria-pressed', +button.dataset.image === now.image));
  find('#about-image').replaceChildren(Object.assign(document.createElement('b'), {textContent: image.name}),
    ` ${image.width} × ${image.height} pixels`);
  for (const {view, kind, number, node} of pictures) {
    const layers = layersOf(kind, number);
    view.width(WIDTH).height(Math.round(image.height * scale(image)));
    view.data('pictures', layers.pictures).data('boxes', layers.boxes);
    if (kind === 'tokens') view.data('tokens', tokenRows(number)).data('cursor', []).signal('block', blockOf(number));
    else node.setAttribute('aria-label', `${kind} of ${image.name}`);
    view.runAsync();
  }
  tellOfImage(image);
  now.at = null;
  all('[data-told]').forEach((list) => list.replaceChildren());
  showBlock();
}

const label = (labels) => (labels?.top ?? []).map(([of, share]) => className(of) + (share === null ? '' : ` ${percent(share, 0)}`)).join(', ');

function tellOfImage(image) {
  const truth = find('#truth-text');
  if (truth) truth.textContent = label(image.truth);
  image.models.forEach((model, number) => {
    const score = model.score === null ? '' : percent(model.score);
    const before = model.before ? `; before fusion ${label(model.before)}` : '';
    find(`[data-text="${number}"]`).textContent = [score, label(model.prediction) + before].filter(Boolean).join(' · ');
    const unlike = find(`[data-unlike="${number}"]`);
    if (unlike && model.unlike) unlike.replaceChildren(...unlikeText(model.unlike));
  });
  const present = new Set([image.truth, ...image.models.map((model) => model.prediction)].flatMap((labels) => labels?.present ?? []));
  find('#legend').replaceChildren(...[...present].sort((a, b) => a - b).map((of) => {
    const item = document.createElement('li');
    item.append(swatch(data.palette[of]), className(of));
    return item;
  }));
}

function swatch(colour) {
  const mark = Object.assign(document.createElement('span'), {className: 'swatch'});
  mark.style.background = colour;
  return mark;
}

function unlikeText(unlike) {
  const boxes = data.kind === 'detection';
  const kinds = boxes ? ['lost', 'new', ''] : ['wrong, dense right', 'right, dense wrong', 'other'];
  if (!boxes && !data.images[now.image].truth) kinds.splice(0, 2, '', '');
  return kinds.flatMap((kind, i) => {
    if (!kind) return [];
    const part = document.createElement('span');
    part.append(swatch(UNLIKE[i]), `${boxes ? unlike.shares[i] : percent(unlike.shares[i])} ${kind}`);
    return [part];
  });
}

function showBlock() {
  const block = now.block;
  all('#block-now, .block-too').forEach((output) => { output.textContent = block; });
  find('#block').value = block;
  for (const {view, kind, number} of pictures) if (kind === 'tokens') view.signal('block', blockOf(number)).runAsync();
  for (const view of charts) if (view.signal('block') !== undefined) view.signal('block', block).runAsync();
  for (const [number, tokens] of Object.entries(now.tokens)) {
    const own = blockOf(number), count = tokens.rows * tokens.columns;
    const there = returned(tokens, own) ? count : tokens.left.reduce((sum, left) => sum + (left === KEPT || left >= own), 0);
    const why = returned(tokens, own) && tokens.left.some((left) => left !== KEPT) ? ' (all come back)' : '';
    find(`[data-count="${number}"]`).textContent = `${there} of ${count} tokens in block ${own}${why}`;
  }
}

// --- one token ------------------------------------------------------------------------------------------------

// Show the token of each model that lies at the middle of token i of one of them.
function showToken(number, i, aloud) {
  const from = now.tokens[number], image = data.images[now.image];
  const x = (i % from.columns + 0.5) * from.patch, y = (Math.floor(i / from.columns) + 0.5) * from.patch;
  if (x - from.patch / 2 >= image.width || y - from.patch / 2 >= image.height) return;
  now.at = i;
  for (const {view, kind, number: other} of pictures) {
    if (kind !== 'tokens') continue;
    const tokens = now.tokens[other];
    const column = Math.floor(x / tokens.patch), row = Math.floor(y / tokens.patch);
    const at = row * tokens.columns + column, side = tokens.patch * scale(image);
    const box = {x: column * side, y: row * side, x2: (column + 1) * side, y2: (row + 1) * side};
    view.data('cursor', [{...box, stroke: 'white', width: 4}, {...box, stroke: 'black', width: 2}]).runAsync();
    const told = Object.entries(about(tokens, at));
    find(`[data-told="${other}"]`).replaceChildren(...told.flatMap(([key, value]) => [
      Object.assign(document.createElement('dt'), {textContent: key}),
      Object.assign(document.createElement('dd'), {textContent: value}),
    ]));
    if (aloud && other === number) find('#status').textContent = told.map((pair) => pair.join(': ')).join('; ');
  }
}

function onKey(event, number) {
  const tokens = now.tokens[number];
  const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -tokens.columns, ArrowDown: tokens.columns};
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = now.at === null ? 0 : now.at + steps[event.key];
  const column = now.at === null ? 0 : now.at % tokens.columns + (event.key === 'ArrowRight') - (event.key === 'ArrowLeft');
  if (next >= 0 && next < tokens.rows * tokens.columns && column >= 0 && column < tokens.columns) showToken(number, next, true);
}

// --- start ----------------------------------------------------------------------------------------------------

async function start() {
  for (const node of all('.picture')) {
    const kind = node.dataset.shows, number = +node.dataset.model;
    const {view} = await vegaEmbed(node, data.picture, options);
    pictures.push({view, kind, number, node});
    if (kind !== 'tokens') { node.setAttribute('role', 'img'); continue; }
    view.addEventListener('mouseover', (event, item) => { if (item?.datum?.tip?.token) showToken(number, item.datum.i, false); });
    node.addEventListener('keydown', (event) => onKey(event, number));
  }
  for (const node of all('.chart')) {
    const {view} = await vegaEmbed(node, data.charts[node.dataset.chart], options);
    charts.push({signal: (...values) => { try { return view.signal(...values); } catch { return undefined; } }});
  }
  all('.thumbs button').forEach((button) => button.addEventListener('click', () => { now.image = +button.dataset.image; showImage(); }));
  find('#block').addEventListener('input', (event) => { now.block = +event.target.value; showBlock(); });
  find('#mode').addEventListener('change', (event) => {
    all('.colours').forEach((key) => { key.hidden = key.dataset.mode !== event.target.value; });
    showImage();
  });
  find('#under').addEventListener('change', showImage);
  let timer = null;
  find('#play').addEventListener('click', (event) => {
    if (timer === null) {
      timer = setInterval(() => { now.block = (now.block + 1) % (+find('#block').max + 1); showBlock(); }, 900);
    } else { clearInterval(timer); timer = null; }
    event.target.textContent = timer === null ? 'Play' : 'Stop';
    event.target.setAttribute('aria-pressed', timer !== null);
  });
  showImage();
  document.body.dataset.ready = 'yes';
}

start();
