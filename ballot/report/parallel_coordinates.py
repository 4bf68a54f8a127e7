"""Parallel coordinates (Inselberg, 1985) with a brush an axis: a Vega specification.

Vega-Lite has one brush a view; here each axis takes its own, and a line stays where all of them
hold it. What is held stands in the signal `held`, which the page listens to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ballot.report.style import BLUE, GREY, INK, LIGHT, LINE, MOST_AXES, MOST_DRAWN, Spec
from ballot.report.trials import Found, best_and_others, is_numeric, spans_orders
from ballot.wording import compact, natural

HEIGHT, BAND = 260, 26  # pixels; a band is what the pointer can catch beside an axis
MOST_NAMES = 12  # names that fit on an axis


def parallel(found: Found, names: Sequence[str]) -> Spec | None:
    """Draw a line a scored trial across `names` and the score; None with nothing to see."""
    trials = best_and_others(found.scored, MOST_DRAWN)
    names = list(names)[:MOST_AXES]
    if len(trials) < 2 or not names:
        return None
    columns = [[t.values.get(name) for t in trials] for name in names]
    axes = [_axis(name, column) for name, column in zip(names, columns)]
    axes.append(_axis(found.monitor, [t.score for t in trials]))
    rows = []
    for place, trial in enumerate(trials):
        row: dict[str, Any] = {
            "t": trial.label,
            "number": trial.number,
            "s": trial.score,
            "level": place / max(len(trials) - 1, 1),
        }
        row |= {f"n{i}": axis["at"][place] for i, axis in enumerate(axes)}
        rows.append(row)
    ticks = [
        {"axis": i, "at": at, "text": text}
        for i, axis in enumerate(axes)
        for at, text in axis["ticks"]
    ]
    rows.reverse()  # the best is drawn last
    return _spec(rows, ticks, [axis["title"] for axis in axes])


def _axis(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Place values between 0 and 1; one that a trial did not have stands at the foot."""
    there = [v for v in values if v is not None]
    if is_numeric(values) and max(there) > min(there):
        low, high = min(there), max(there)
        log = spans_orders(there)
        to = math.log if log else float
        a, b = to(low), to(high)
        foot = 0.1 if len(there) < len(values) else 0.0
        at = [0.0 if v is None else foot + (1 - foot) * (to(v) - a) / (b - a) for v in values]
        marks = [a + (b - a) * k / 4 for k in range(5)]
        distinct = sorted({to(v) for v in there})
        if len(distinct) <= 6 and all(y - x > (b - a) / 16 for x, y in pairwise(distinct)):
            marks = distinct
        ticks = [
            (foot + (1 - foot) * (mark - a) / (b - a), f"{math.exp(mark) if log else mark:.3g}")
            for mark in marks
        ]
        return {"title": name, "at": at, "ticks": ([(0.0, "none")] if foot else []) + ticks}
    words = ["none" if v is None else compact(v) for v in values]
    names = sorted(set(words), key=natural)
    spots = {word: (k + 0.5) / len(names) for k, word in enumerate(names)}
    shown = names[:: math.ceil(len(names) / MOST_NAMES)]
    return {
        "title": name,
        "at": [spots[w] for w in words],
        "ticks": [(spots[word], word) for word in shown],
    }


def _spec(rows: list[dict[str, Any]], ticks: list[dict[str, Any]], titles: list[str]) -> Spec:
    count = len(titles)
    inside = " && ".join(
        f"(!span(b{i}) || inrange((1 - datum.n{i}) * height, b{i}))" for i in range(count)
    )
    path = " + ".join(
        f"'{'L' if i else 'M'}' + (at({i})) + ',' + ((1 - datum.n{i}) * height)"
        for i in range(count)
    )
    path = _at(path, count)
    strong = 0.85 if len(rows) <= 40 else 0.55
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "height": HEIGHT,
        "padding": {"left": 50, "right": 50, "top": 34, "bottom": 8},
        "autosize": {"type": "none", "contains": "padding"},
        "config": {"aria": False},
        "signals": _signals(count),
        "data": _tables(rows, ticks, titles, inside),
        "scales": [
            {
                "name": "level",
                "type": "linear",
                "domain": [1, 0],
                "range": {"scheme": "viridis", "extent": [0.15, 0.85]},
            }
        ],
        "marks": [
            _lines("trials", "datum.hit", path, strong),
            *_frame(count),
            *[_catcher(i, count) for i in range(count)],
            *[_band(i, count) for i in range(count)],
        ],
    }


def _signals(count: int) -> list[Spec]:
    """Return the width of the figure, a brush for each axis, and the trials that they hold."""
    width = {
        "name": "width",
        "init": "containerSize()[0] || 860",
        "on": [{"events": "window:resize", "update": "containerSize()[0]"}],
    }
    held = {"name": "held", "update": "pluck(data('held'), 'number')"}
    return [width, *[_brush(i) for i in range(count)], held]


def _tables(
    rows: list[dict[str, Any]], ticks: list[dict[str, Any]], titles: list[str], inside: str
) -> list[Spec]:
    """Return the data: trials, those that every brush holds, ticks and axes."""
    hit = {"type": "formula", "as": "hit", "expr": inside}
    axes = [{"axis": i, "text": text, "up": i % 2} for i, text in enumerate(titles)]
    return [
        {"name": "trials", "values": rows, "transform": [hit]},
        {
            "name": "held",
            "source": "trials",
            "transform": [{"type": "filter", "expr": "datum.hit"}],
        },
        {"name": "ticks", "values": ticks},
        {"name": "axes", "values": axes},
    ]


def _at(expression: str, count: int) -> str:
    """Write out `at(i)`: where axis `i` stands in a width that is known on the page alone."""
    for i in range(count):
        expression = expression.replace(f"(at({i}))", _x(i, count))
    return expression


def _x(axis: int, count: int) -> str:
    return f"((width) * {axis / (count - 1):.6f})"


def _brush(axis: int) -> Spec:
    catcher = f"@catch{axis}"
    return {
        "name": f"b{axis}",
        "value": [0, 0],
        "on": [
            {"events": f"{catcher}:pointerdown", "update": "[y(), y()]"},
            {
                "events": f"[{catcher}:pointerdown, window:pointerup] > window:pointermove!",
                "update": f"[b{axis}[0], clamp(y(), 0, height)]",
            },
            {"events": f"{catcher}:dblclick", "update": "[0, 0]"},
        ],
    }


def _lines(data: str, hit: str, path: str, strong: float) -> Spec:
    return {
        "type": "path",
        "from": {"data": data},
        "interactive": False,
        "encode": {
            "update": {
                "path": {"signal": path},
                "stroke": [{"test": hit, "scale": "level", "field": "level"}, {"value": GREY}],
                "strokeWidth": [{"test": hit, "value": 1.6}, {"value": 1}],
                "strokeOpacity": [{"test": hit, "value": strong}, {"value": 0.12}],
                "zindex": [{"test": hit, "value": 1}, {"value": 0}],
            }
        },
    }


def _frame(count: int) -> list[Spec]:
    x = {"signal": f"width * datum.axis / {count - 1}"}
    tick = {
        "text": {"field": "text"},
        "fontSize": {"value": 10},
        "baseline": {"value": "middle"},
        "x": {"signal": f"width * datum.axis / {count - 1} + 5"},
        "y": {"signal": "(1 - datum.at) * height"},
        "limit": {"signal": f"width / {count - 1} - 12"},
    }
    # A copy as thick as a brush, in the colour of the ground, keeps lines out of the words.
    halo = {"stroke": {"value": LIGHT}, "strokeWidth": {"value": 4}}
    title = {
        "text": {"field": "text"},
        "fontSize": {"value": 11},
        "fontWeight": {"value": 600},
        "x": x,
        "y": {"signal": "datum.up ? -24 : -10"},
        "align": {"value": "center"},
        "limit": {"signal": f"2 * width / {count - 1} - 12"},
        "fill": {"value": INK},
    }
    rule = {"x": x, "y": {"value": 0}, "y2": {"signal": "height"}, "stroke": {"value": GREY}}
    return [
        _still("rule", "axes", rule),
        _still("text", "ticks", tick | halo),
        _still("text", "ticks", tick | {"fill": {"value": INK}}),
        _still("text", "axes", title),
    ]


def _still(kind: str, data: str, encode: Spec) -> Spec:
    """Return a mark that the pointer passes through."""
    return {
        "type": kind,
        "from": {"data": data},
        "interactive": False,
        "encode": {"update": encode},
    }


def _catcher(axis: int, count: int) -> Spec:
    """Return the invisible strip that takes the pointer."""
    return {
        "type": "rect",
        "name": f"catch{axis}",
        "encode": {
            "update": {
                "xc": {"signal": _x(axis, count)},
                "width": {"value": BAND},
                "y": {"value": 0},
                "height": {"signal": "height"},
                "fill": {"value": LINE},
                "fillOpacity": {"value": 0},
                "cursor": {"value": "ns-resize"},
            }
        },
    }


def _band(axis: int, count: int) -> Spec:
    """Return the range that is brushed."""
    brush = f"b{axis}"
    return {
        "type": "rect",
        "interactive": False,
        "encode": {
            "update": {
                "xc": {"signal": _x(axis, count)},
                "width": {"value": 14},
                "y": {"signal": f"{brush}[0]"},
                "y2": {"signal": f"{brush}[1]"},
                "fill": {"value": BLUE},
                "fillOpacity": {"value": 0.25},
                "stroke": {"value": BLUE},
                "strokeOpacity": {"signal": f"span({brush}) ? 1 : 0"},
            }
        },
    }
