"""One HTML file that needs nothing else: images and tokens packed into it, plots, and a little script between them."""

from __future__ import annotations

import base64
import colorsys
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..analysis.routing import KEPT
from ..benchmark.throughput import Timing
from ..utils.io import whole_file
from . import charts
from .contenders import Contender
from .summary import SetSummary, truth_of
from .tasks import IGNORED, Detection, Labels, Task, match
from .trace import NOBODY, ImageTrace

LARGEST = 640
"""Pixels of the longer side of a picture in the page."""
NOTHING = {np.uint8: 255, np.uint16: 65535}
"""Among packed numbers: none."""
STEPS = 253
UNLIKE = ('#e03131', '#1971c2', '#868e96')
"""Pixels that the dense model alone has right, that it alone has wrong, and others that differ."""
_FILES = Path(__file__).resolve().parent


def write_page(
    out: str | Path,
    title: str,
    contenders: Sequence[Contender],
    summary: SetSummary,
    rows: Sequence[int],
    shown: Sequence[int],
    speeds: Sequence[tuple[Timing, float]] = (),
    machine: str = '',
) -> Path:
    """Write the report.

    Args:
        out: file to write.
        title: of the page.
        contenders: the dense model first.
        summary: of the whole set.
        rows: images of that set.
        shown: indices into ``rows``, of the images to look at.
        speeds: of :func:`~cropr_mm.report.contenders.time_contenders`, or none.
        machine: that they were measured on.
    """
    charts.load_altair()
    import jinja2

    names = [one.name for one in contenders]
    classes = [str(name) for name in contenders[0].meta.get('classes') or range(summary.task.num_classes)]
    palette = palette_of(contenders[0].meta, summary.task.num_classes)
    images = [_image(contenders, summary, rows, i, palette) for i in shown]
    data = dict(
        classes=classes,
        palette=[f'#{r:02x}{g:02x}{b:02x}' for r, g, b in palette],
        kind=summary.task.kind,
        models=[dict(name=one.name, depth=one.depth, fusion=one.fusion) for one in contenders],
        start=int(np.argmin(summary.models[1].entered)),
        images=images,
        picture=charts.picture(),
        charts={key: chart for key, chart in _charts(summary, names, classes).items() if chart is not None},
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['percent'] = lambda share, digits=1: '–' if share is None else f'{share:.{digits}%}'
    environment.filters['points'] = lambda share: f'{round(100 * share, 1) + 0.0:+.1f}'.replace('-', '−')
    page = environment.get_template('page.html.j2').render(
        title=title,
        task=summary.task,
        labelled=summary.labelled,
        count=len(summary.names),
        contenders=contenders,
        colours=[charts.model_colour(i) for i in range(len(names))],
        table=[_row(summary, i, speeds) for i in range(len(names))],
        speeds=speeds,
        machine=machine,
        images=images,
        depth=max(one.depth for one in contenders),
        data=data,
        entered=[one.entered for one in summary.models],
        by_class=charts.class_rows(summary, names, classes),
        by_exit={i: charts.exit_rows(summary, names, i) for i in range(1, len(names))},
        ranking=[
            dict(name=summary.names[i], scores=[one.scores[i] for one in summary.models]) for i in summary.order()
        ],
        json=_json,
        style=(_FILES / 'page.css').read_text(encoding='utf-8'),
        script=(_FILES / 'page.js').read_text(encoding='utf-8'),
        vega=charts.javascript(),
        unlike=UNLIKE,
    )
    with whole_file(out) as partial:
        partial.write_text(page, encoding='utf-8')
    return Path(out)


def _json(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, separators=(',', ':'), ensure_ascii=False)
    return text.replace('<', '\\u003c').replace('\u2028', '\\u2028').replace('\u2029', '\\u2029')


def _charts(summary: SetSummary, names: list[str], classes: list[str]) -> dict[str, Any]:
    found = dict(entered=charts.tokens_per_block(summary, names), classes=charts.classes_kept(summary, names, classes))
    found.update({f'right-{i}': charts.right_by_exit(summary, names, i) for i in range(1, len(names))})
    return {**found, 'costs': charts.costs(summary, names)}


def _row(summary: SetSummary, model: int, speeds: Sequence[tuple[Timing, float]]) -> dict[str, Any]:
    """A row of the table of models."""
    row = dict(total=summary.total(model), fewest=float(summary.models[model].entered.min()))
    row['lost'] = row['total'] - summary.total(0)
    if speeds:
        timing, pruned = speeds[model]
        row.update(speed=timing.images_per_second, spread=timing.spread, pruned=pruned)
        row['ratio'] = timing.ratio_to(speeds[0][0])
    return row


# --- images -------------------------------------------------------------------------------------------------------


def _image(
    contenders: Sequence[Contender], summary: SetSummary, rows: Sequence[int], i: int, palette: np.ndarray
) -> dict[str, Any]:
    """All that the page has of one image."""
    task, traces = summary.task, [one.trace(rows[i], before=True) for one in contenders]
    dense = traces[0]
    assert dense.prediction is not None
    truth = truth_of(task, dense, dense)
    covers: dict[str, Any] = {}
    models = []
    for number, (trace, contender) in enumerate(zip(traces, contenders)):
        key = f'{trace.grid[0]}×{trace.grid[1]}, {trace.patch_size}'
        cover = task.cover(trace.truth, trace.grid, trace.patch_size) if trace.truth is not None else None
        if cover is not None and key not in covers:
            covers[key] = pack_cover(cover)
        score = summary.models[number].scores[i]
        models.append(
            dict(
                prediction=_labels(trace.prediction, task, palette),
                before=_labels(trace.before, task, palette) if task.kind == 'classification' else None,
                score=None if np.isnan(score) else round(score, 4),
                cost=round(summary.costs(number)[i], 4),
                **(_unlike(trace, dense, task, truth) if number else {}),
                **(_tokens(trace, task, contender) if number else {}),
                cover=key,
            )
        )
    return dict(
        name=summary.names[i],
        width=dense.image.shape[1],
        height=dense.image.shape[0],
        photo=photo_uri(dense.image),
        truth=_labels(dense.truth, task, palette),
        covers=covers,
        models=models,
    )


def _labels(labels: Labels | None, task: Task, palette: np.ndarray) -> dict[str, Any] | None:
    """A prediction or ground truth to look at."""
    if labels is None:
        return None
    if 'sem_seg' in labels:
        present = np.unique(labels['sem_seg'])
        known = present[(present >= 0) & (present < task.num_classes) & (present != IGNORED)]
        return dict(png=label_uri(labels['sem_seg'], palette), present=known.tolist())
    if 'boxes' in labels:
        scores = labels['scores'] if labels['scores'] is not None else [None] * len(labels['boxes'])
        found: dict[str, Any] = dict(
            boxes=[
                [*np.round(box, 1).tolist(), int(label), None if score is None else round(float(score), 2)]
                for box, label, score in zip(labels['boxes'], labels['labels'], scores)
            ],
            present=sorted(set(np.asarray(labels['labels']).tolist())),
        )
        masks = labels['masks']
        if masks is not None and len(masks):
            covered = np.full(masks.shape[1:], -1)
            for mask, label in zip(masks, labels['labels']):
                covered[np.asarray(mask, dtype=bool)] = label
            found['png'] = label_uri(covered, palette)
        return found
    if 'classes' in labels:
        best = np.argsort(-labels['classes'], kind='stable')[:3]
        return dict(top=[[int(i), round(float(labels['classes'][i]), 4)] for i in best])
    return dict(top=[[int(i), None] for i in labels['labels']])


def _unlike(trace: ImageTrace, dense: ImageTrace, task: Task, truth: Labels) -> dict[str, Any]:
    """Where a prediction is not the dense model's."""
    own, other = trace.prediction, dense.prediction
    assert own is not None and other is not None
    if 'sem_seg' in own:
        differs = own['sem_seg'] != other['sem_seg']
        unlike = np.full(differs.shape, -1)
        unlike[differs] = 2
        if dense.truth is not None:
            unlike[differs & (other['sem_seg'] == truth['sem_seg'])] = 0
            unlike[differs & (own['sem_seg'] == truth['sem_seg'])] = 1
        colours = np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in UNLIKE])
        shares = [round(float((unlike == kind).mean()), 4) for kind in range(3)]
        return dict(unlike=dict(png=label_uri(unlike, colours), shares=shares))
    if isinstance(task, Detection):
        found, known = match(own, other)
        drawn = [*zip(own['boxes'][~found], own['labels'][~found], [1] * len(found))]
        drawn += zip(other['boxes'][~known], other['labels'][~known], [0] * len(known))
        boxes = [[*np.round(box, 1).tolist(), int(label), kind] for box, label, kind in drawn]
        return dict(unlike=dict(boxes=boxes, shares=[int((~known).sum()), int((~found).sum()), 0]))
    return {}


def _tokens(trace: ImageTrace, task: Task, contender: Contender) -> dict[str, Any]:
    """What happened to the tokens, packed."""
    tokens = trace.tokens
    said = {key: labels for key, labels in (('after', trace.prediction), ('early', trace.before))}
    classes = {key: _class_of_tokens(labels, trace, task) for key, labels in said.items()}
    return dict(
        grid=list(trace.grid),
        patch=trace.patch_size,
        left=pack(tokens.left, np.uint8, tokens.left != KEPT),
        owner=pack(tokens.owner, np.uint16, tokens.owner != NOBODY) if (tokens.owner != NOBODY).any() else None,
        scores={block: pack_scores(scores) for block, scores in tokens.scores.items()},
        **{key: value for key, value in classes.items() if value is not None},
    )


def _class_of_tokens(labels: Labels | None, trace: ImageTrace, task: Task) -> str | None:
    """The class predicted for most of each patch."""
    if labels is None or 'sem_seg' not in labels:
        return None
    cover = task.cover(labels, trace.grid, trace.patch_size)
    assert cover is not None
    most, best = cover.max(dim=1)
    return pack(best, width_of(task.num_classes), most > 0)


def width_of(classes: int) -> Any:
    """The integers that classes are packed as."""
    return np.uint8 if classes < NOTHING[np.uint8] else np.uint16


def pack(values: Tensor, kind: Any, known: Tensor | None = None) -> str:
    """Integers as little-endian bytes in base64; what is not known is the largest number of the kind."""
    if known is not None:
        values = values.where(known, values.new_tensor(NOTHING[kind]))
    return base64.b64encode(values.numpy().astype(np.dtype(kind).newbyteorder('<')).tobytes()).decode()


def pack_scores(scores: Tensor) -> list[Any]:
    """Lowest and highest score, and all of them in 253 steps between; NaN and infinities have none."""
    known = scores.isfinite()
    low, high = (float(scores[known].min()), float(scores[known].max())) if known.any() else (0.0, 0.0)
    steps = ((scores - low) / max(high - low, 1e-30) * STEPS).round()
    return [float(f'{low:.5g}'), float(f'{high:.5g}'), pack(steps, np.uint8, known)]


def pack_cover(cover: Tensor) -> list[str]:
    """The two classes that cover most of each patch: class, percent, class, percent."""
    kind = width_of(cover.shape[1])
    shares, classes = cover.topk(min(2, cover.shape[1]), dim=1)
    return [
        packed
        for share, label in zip(shares.T, classes.T)
        for packed in (pack(label, kind, share > 0), pack((100 * share).round(), np.uint8))
    ]


def palette_of(meta: Mapping[str, Any], count: int) -> np.ndarray:
    """(C, 3) uint8, the data set's colours, or some."""
    given = meta.get('palette')
    if given is not None and not isinstance(given, str) and len(given) >= count:
        return np.array(given, dtype=np.uint8)[:count]
    turn = [colorsys.hls_to_rgb(i * 0.618034 % 1, (0.45, 0.6, 0.35)[i % 3], 0.7) for i in range(count)]
    return (255 * np.array(turn)).round().astype(np.uint8)


def photo_uri(image: np.ndarray) -> str:
    """An image as a JPEG inside an address."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return _uri(picture, 'JPEG', quality=82)


def label_uri(labels: np.ndarray, palette: np.ndarray) -> str:
    """A label map as a PNG inside an address; clear where there is no class."""
    from PIL import Image

    known = (labels >= 0) & (labels < len(palette))
    present, index = np.unique(np.where(known, labels, -1), return_inverse=True)
    if len(present) > 256:
        raise ValueError(f'a label map with {len(present)} classes; at most 256 in one image can be drawn')
    picture = Image.fromarray(index.reshape(labels.shape).astype(np.uint8), mode='P')
    picture.putpalette(np.where(present[:, None] < 0, 0, palette[present]).astype(np.uint8).tobytes())
    if max(picture.size) > LARGEST:
        share = LARGEST / max(picture.size)
        picture = picture.resize(
            (max(round(picture.width * share), 1), max(round(picture.height * share), 1)), Image.Resampling.NEAREST
        )
    return _uri(picture, 'PNG', optimize=True, **(dict(transparency=0) if present[0] < 0 else {}))


def _uri(picture: Any, kind: str, **settings: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return f'data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}'
