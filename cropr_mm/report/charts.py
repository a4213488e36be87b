"""Vega-Lite specifications, by altair: the picture of an image and what lies over it, and charts of a whole set.

Colours are variables of the page's style sheet, so that they follow dark and light.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .summary import SetSummary

MOST_CLASSES = 30
"""Classes in a chart: those that cover most."""
MODEL_COLOURS = 5
"""Variables ``--model-0`` (the dense model) … of the style sheet; further models begin again after the dense one."""


@functools.lru_cache(maxsize=None)
def load_altair() -> Any:
    """The plot library.

    Raises:
        ModuleNotFoundError: it is not there; the message says what to install.
    """
    try:
        import altair
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'a report needs {error.name}, which is not installed: pip install "cropr_mm[report]"'
        ) from error
    return altair


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed for the page, of the version that :func:`load_altair` writes for."""
    version = '.'.join(load_altair().SCHEMA_VERSION.split('.')[:2])
    import vl_convert

    return vl_convert.javascript_bundle('window.vegaEmbed=vegaEmbed;', vl_version=version)


def model_colour(model: int) -> str:
    return f'var(--model-{0 if model == 0 else (model - 1) % (MODEL_COLOURS - 1) + 1})'


def picture() -> dict[str, Any]:
    """Pictures (``pictures``) over each other, and tokens (``tokens``), boxes (``boxes``) and a cursor (``cursor``)
    over them. All are filled in by the page, which also sets the signal ``block``. Places are in pixels of the view."""
    alt = load_altair()

    def along(axis: Any, name: str) -> Any:
        return axis(f'{name}:Q').scale(None).axis(None)

    def at(chart: Any) -> Any:
        return chart.encode(x=along(alt.X, 'x'), y=along(alt.Y, 'y'), x2='x2:Q', y2='y2:Q')

    pictures = alt.Chart(alt.NamedData('pictures')).mark_image(
        **dict(align='left', baseline='top', aspect=False, width=dict(expr='width'), height=dict(expr='height')),
        **dict(opacity=dict(expr='datum.opacity'), smooth=dict(expr='datum.smooth')),
    )
    pictures = pictures.encode(url='url:N', x=alt.value(0), y=alt.value(0))
    tokens = alt.Chart(alt.NamedData('tokens')).mark_rect(
        fill=dict(expr='datum.fill[block]'),
        fillOpacity=dict(expr='datum.opacity[block]'),
        stroke=None,
        tooltip=dict(expr='datum.tip'),
    )
    boxes = alt.Chart(alt.NamedData('boxes'))
    frames = boxes.mark_rect(
        fillOpacity=0,
        stroke=dict(expr='datum.colour'),
        strokeWidth=2,
        strokeDash=dict(expr='datum.dash'),
        tooltip=dict(expr='datum.tip'),
    )
    letters = dict(align='left', baseline='bottom', dx=1, dy=-2, fontSize=11, fontWeight='bold', clip=True)
    words = boxes.encode(x=along(alt.X, 'x'), y=along(alt.Y, 'text_y'), text='text:N')
    halo = words.mark_text(**letters, stroke='#000', strokeOpacity=0.65, strokeWidth=3)
    cursor = alt.Chart(alt.NamedData('cursor')).mark_rect(
        fillOpacity=0, stroke=dict(expr='datum.stroke'), strokeWidth=dict(expr='datum.width'), tooltip=None
    )
    block = alt.param(name='block', value=0)
    words = words.mark_text(**letters, fill='white')
    layers = alt.layer(
        pictures,
        at(tokens),
        at(frames).properties(name='frames'),
        halo.properties(name='halo'),
        words.properties(name='words'),
        at(cursor).properties(name='cursor'),
    ).add_params(block)
    spec = layers.properties(autosize='none', padding=0, width=360, height=360).to_dict()
    spec.update(config=dict(view=dict(stroke=None), aria=False, background=None))
    return spec


def _chart(rows: list[dict[str, Any]], title: str) -> Any:
    alt = load_altair()
    return alt.Chart(alt.Data(values=rows)).properties(width='container', description=title)


def _by_model(names: Sequence[str], first: int = 0) -> Any:
    alt = load_altair()
    used = list(range(first, len(names)))
    scale = dict(domain=[names[i] for i in used], range=[model_colour(i) for i in used])
    return alt.Color('model:N').scale(**scale).legend(orient='top', title=None)


def tokens_per_block(summary: SetSummary, names: Sequence[str]) -> dict[str, Any]:
    """Share of the patch tokens that each block works on."""
    alt = load_altair()
    rows = [
        dict(model=name, block=block, share=_rounded(share))
        for name, one in zip(names, summary.models)
        for block, share in enumerate(one.entered)
    ]
    chart = _chart(rows, 'Share of the patch tokens that each block works on').mark_line(
        point=dict(size=50), strokeWidth=2.5
    )
    return _finished(
        chart.encode(
            x=alt.X('block:O').title('block').axis(labelAngle=0),
            y=alt.Y('share:Q').title('patch tokens').axis(format='%').scale(domain=[0, 1]),
            color=_by_model(names),
            strokeDash=alt.StrokeDash('model:N').sort(list(names)).legend(None),
            tooltip=['model:N', 'block:O', alt.Tooltip('share:Q', format='.1%')],
        ).properties(height=240)
    )


def classes_kept(summary: SetSummary, names: Sequence[str], classes: Sequence[str]) -> dict[str, Any] | None:
    """Share of each class that reaches the block of the signal ``block``; None where tokens have no class."""
    alt = load_altair()
    rows = class_rows(summary, names, classes)
    if not rows:
        return None
    order = list(dict.fromkeys(row['class'] for row in rows))
    chart = _chart(rows, 'Share of each class that reaches the block of the slider')
    chart = chart.transform_filter('datum.block == block').mark_point(filled=True, size=90, opacity=1)
    return _finished(
        chart.encode(
            x=alt.X('share:Q')
            .title('share that reaches the block')
            .axis(format='%', orient='top')
            .scale(domain=[0, 1]),
            y=alt.Y('class:N').sort(order).title(None).axis(grid=True, labelLimit=140),
            color=_by_model(names, 1),
            tooltip=['class:N', 'model:N', 'block:O', alt.Tooltip('share:Q', format='.1%')],
        )
        .properties(height=20 * len(order))
        .add_params(alt.param(name='block', value=0))
    )


def class_rows(summary: SetSummary, names: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Class, model, block, share; the class first of which most is kept where the first pruned model keeps least."""
    first = summary.models[1]
    covered = np.asarray(first.covered)
    if not covered.ndim:
        return []
    deepest = int(np.argmin(first.entered))
    share = first.reached / covered.clip(min=1e-9)[:, None]
    largest = [i for i in np.argsort(-covered, kind='stable')[:MOST_CLASSES] if covered[i] > 0]
    return [
        {'class': str(classes[i]), 'model': name, 'block': block, 'share': _rounded(reached / one.covered[i])}
        for i in sorted(largest, key=lambda i: -share[i, deepest])
        for name, one in zip(names[1:], summary.models[1:])
        for block, reached in enumerate(one.reached[i])
        if one.covered[i] > 0
    ]


def right_by_exit(summary: SetSummary, names: Sequence[str], model: int) -> dict[str, Any] | None:
    """Accuracy by the block after which tokens left, of a model and of the dense one; None where there is none."""
    alt = load_altair()
    rows = exit_rows(summary, names, model)
    if not rows:
        return None
    order = list(dict.fromkeys(row['left'] for row in rows))
    who = f'Accuracy where {names[model]} prunes and where it keeps tokens'
    colours = alt.Color('model:N').legend(orient='top', title=None)
    colours = colours.scale(domain=[names[model], names[0]], range=[model_colour(model), model_colour(0)])
    chart = _chart(rows, who).mark_bar(cornerRadiusEnd=2)
    return _finished(
        chart.encode(
            x=alt.X('left:N').sort(order).title('tokens that left after block').axis(labelAngle=0),
            xOffset=alt.XOffset('model:N').sort([names[model], names[0]]),
            y=alt.Y('right:Q').title('right').axis(format='%').scale(domain=[0, 1]),
            color=colours,
            tooltip=['model:N', 'left:N', alt.Tooltip('right:Q', format='.1%'), alt.Tooltip('of:Q', format=',')],
        ).properties(height=220)
    )


def exit_rows(summary: SetSummary, names: Sequence[str], model: int) -> list[dict[str, Any]]:
    """When tokens left, model, share that is right, and of how many pixels or objects."""
    right = summary.models[model].right
    if right is None or not right[:-1, 0].any():
        return []
    labels = [*map(str, range(len(right) - 1)), 'kept']
    return [
        dict(left=label, model=name, right=_rounded(correct / total), of=int(total))
        for label, (total, own, dense) in zip(labels, right)
        if total
        for name, correct in ((names[model], own), (names[0], dense))
    ]


def costs(summary: SetSummary, names: Sequence[str]) -> dict[str, Any]:
    """What each model lost on each image, the worst first."""
    alt = load_altair()
    rows = [
        dict(rank=rank + 1, image=summary.names[row], model=names[model], cost=_rounded(summary.costs(model)[row]))
        for model in range(1, len(names))
        for rank, row in enumerate(summary.order())
    ]
    chart = _chart(rows, 'What each image lost against the dense model').mark_bar()
    return _finished(
        chart.encode(
            x=alt.X('rank:Q')
            .title('images, by what pruning cost them')
            .axis(tickMinStep=1, grid=False)
            .scale(nice=False, padding=6),
            y=alt.Y('cost:Q').title('lost against dense').axis(format='+%').stack(None),
            color=_by_model(names, 1),
            opacity=alt.value(1 if len(names) == 2 else 0.6),
            tooltip=['image:N', 'model:N', alt.Tooltip('cost:Q', format='+.1%')],
        ).properties(height=220)
    )


def _rounded(share: float) -> float:
    return round(float(share), 4)


def _finished(chart: Any) -> dict[str, Any]:
    text = dict(labelColor='var(--soft)', titleColor='var(--soft)', titleFontWeight='normal', labelFontSize=12)
    lines = dict(gridColor='var(--line)', domainColor='var(--line)', tickColor='var(--line)', titleFontSize=12)
    spec = chart.to_dict()
    spec['autosize'] = dict(type='fit-x', contains='padding')
    spec['config'] = dict(
        **dict(
            background=None,
            font='system-ui, sans-serif',
            view=dict(stroke=None),
            autosize=dict(type='fit-x', contains='padding'),
        ),
        axis={**text, **lines},
        legend=dict(labelColor='var(--ink)', labelFontSize=13, symbolType='circle', labelLimit=260, columns=2),
    )
    return spec
