"""The figures of a report: Vega-Lite specifications, as plain dictionaries.

Fields have names of our own; names of classes, runs and options stand in values alone, which Vega
draws as text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ballot.report.statistics import Judged, confusion
from ballot.report.style import (
    BLUE,
    CONFIG,
    FIRST,
    GREY,
    INK,
    LIGHT,
    LINE,
    MOST_CELLS,
    MOST_CLASSES,
    MOST_CURVES,
    MOST_DRAWN,
    MOST_IN_ALL,
    MOST_POINTS,
    ORANGE,
    PALETTE,
    RED,
    Spec,
)
from ballot.report.trials import Found, Trial, best_and_others, evenly, is_numeric, spans_orders
from ballot.wording import compact


def plot(values: Sequence[Mapping[str, Any]], height: int, **parts: Any) -> Spec:
    """Return a specification as wide as its place on the page."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(values)},
        "config": CONFIG,
        **parts,
    }


def quantity(name: str, title: str, **more: Any) -> Spec:
    """Return an axis of numbers that need not begin at zero."""
    scale = {"zero": False, "nice": True, **more.pop("scale", {})}
    return {"field": name, "type": "quantitative", "title": title, "scale": scale, **more}


def say(*pairs: str, digits: str = ".4~g") -> list[Spec]:
    """Return what the pointer shows: `field=title`, numbers with `=title=number`."""
    shown = []
    for pair in pairs:
        name, title, *kind = pair.split("=")
        number = {"type": "quantitative", "format": digits} if kind else {"type": "nominal"}
        shown.append({"field": name, "title": title, **number})
    return shown


KINDS = ["trial", "vote", "Pareto front"]
EARLY_ENDS = ["stopped", "failed"]
APART = {"legend": {"shape": "independent"}}


def curves(found: Found, metric: str, of: Sequence[Trial] | None = None) -> Spec | None:
    """Draw a line a trial over epochs; the first few in colour, early ends marked.

    `of` are the trials that may be drawn on one axis; all of them unless said.
    """
    shown = found.trials if of is None else of
    known = sorted((t for t in shown if t.curve), key=lambda t: not 0 < t.rank <= FIRST)
    trials = [*known[:FIRST], *evenly(known[FIRST:], MOST_CURVES)]
    few = min(MOST_POINTS, max(8, MOST_IN_ALL // max(len(trials), 1)))
    limits = [MOST_POINTS if 0 < trial.rank <= FIRST else few for trial in trials]
    rows = [row for trial, most in zip(trials, limits) for row in _curve(trial, metric, most)]
    if not rows:
        return None
    return plot(rows, 300, layer=_curve_layers(found, metric, known, rows), resolve=APART)


def _curve_layers(
    found: Found, metric: str, known: Sequence[Trial], rows: Sequence[Mapping[str, Any]]
) -> list[Spec]:
    """Return the other trials' lines in grey, the first ones' in colour, and marks at ends."""
    ends = [row for row in rows if "end" in row]
    colours = {t.label: colour for t, colour in zip(found.scored, PALETTE) if t in known}
    top = list(colours)
    cut = _without_outliers([row["v"] for row in rows])
    base = {
        "x": {"field": "e", "type": "quantitative", "title": "epoch", "axis": {"tickMinStep": 1}},
        "y": quantity("v", metric, scale=cut),
        "detail": {"field": "t"},
        "tooltip": say("t=run", "e=epoch=n", f"v={metric}=n"),
    }
    hues = {"domain": top, "range": list(colours.values())}  # the same in every figure
    coloured = {**base, "color": {"field": "t", "type": "nominal", "scale": hues}}
    lines = {"type": "line", "clip": bool(cut)}
    first = {"filter": {"field": "t", "oneOf": top}}
    others = {"filter": {"not": first["filter"]}}
    grey = {**lines, "color": GREY, "opacity": 0.45, "strokeWidth": 1}
    below = {"transform": [others], "mark": grey, "encoding": base}
    above = {"transform": [first], "mark": {**lines, "strokeWidth": 2}, "encoding": coloured}
    layers: list[Spec] = [below, above]
    if len(found.scored) <= FIRST:
        layers = [above, below] if len(known) > len(top) else [above]
    if any(row["e"] == 1 for row in ends) or len(rows) == len(ends):
        dots = {"type": "point", "filled": True}
        layers.append({"transform": [first], "mark": dots, "encoding": coloured})
    if any(row["end"] in EARLY_ENDS for row in ends):
        layers.append(_end_marks(base, clip=bool(cut)))
    return layers


def _end_marks(base: Spec, *, clip: bool) -> Spec:
    """Mark where a trial was stopped or failed."""
    shapes = {"domain": EARLY_ENDS, "range": ["cross", "triangle-down"]}
    return {
        "transform": [{"filter": {"field": "end", "oneOf": EARLY_ENDS}}],
        "mark": {"type": "point", "filled": True, "size": 70, "color": RED, "clip": clip},
        "encoding": {**base, "shape": {"field": "end", "type": "nominal", "scale": shapes}},
    }


def _curve(trial: Trial, metric: str, most: int) -> list[dict[str, Any]]:
    points = [
        (int(row.get("epoch", n)), row[metric])
        for n, row in enumerate(trial.curve, start=1)
        if metric in row
    ]
    step = max(1, math.ceil(len(points) / most))
    kept = points[::step] + ([points[-1]] if points and (len(points) - 1) % step else [])
    rows = [{"t": trial.label, "e": epoch, "v": float(f"{v:.5g}")} for epoch, v in kept]
    if rows:
        rows[-1]["end"] = trial.status
    return rows


def _without_outliers(values: Sequence[float]) -> Spec:
    """Cut the axis where a few diverged values would flatten all others."""
    ordered = sorted(values)
    high, low = ordered[int(0.98 * (len(ordered) - 1))], ordered[0]
    if ordered[-1] - low > 4 * (high - low) > 0:
        return {"domainMax": float(f"{high:.3g}")}
    return {}


def best_so_far(rows: Sequence[Mapping[str, Any]], monitor: str, against: str) -> Spec | None:
    """Draw each score and the best one until then, against `trial` or `minutes`."""
    rows = _steps([row for row in rows if row[against] is not None])
    if not rows:
        return None
    title = {"trial": "trials ended", "minutes": "minutes since the first start"}[against]
    axis = {"tickCount": 6, "tickMinStep": 1 if against == "trial" else 0}
    x = {"field": against, "type": "quantitative", "title": title, "axis": axis}
    told = say("run=run", f"score={monitor}=n", "best=best so far=n", f"{against}={title}=n")
    return plot(
        rows,
        220,
        encoding={"x": x},
        layer=[
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "color": GREY,
                    "size": 30,
                    "opacity": 0.8,
                },
                "encoding": {"y": quantity("score", monitor), "tooltip": told},
            },
            {
                "mark": {
                    "type": "line",
                    "interpolate": "step-after",
                    "color": BLUE,
                    "strokeWidth": 2,
                },
                "encoding": {"y": quantity("best", monitor)},
            },
        ],
    )


def _steps(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that are drawn: all in which the best score changes, and others evenly."""
    kept = {id(row) for row in evenly(rows, MOST_DRAWN)}
    kept |= {id(row) for before, row in pairwise(rows) if row["best"] != before["best"]}
    return [row for row in rows if id(row) in kept or row is rows[-1]]


def importances(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw a bar a hyperparameter with the spread over shuffles."""
    rows = [
        {
            **row,
            "low": max(row["importance"] - row["error"], 0),
            "high": row["importance"] + row["error"],
        }
        for row in rows
    ]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    told = say("name=hyperparameter", "importance=R² lost=n", "error=spread=n", digits=".2~f")
    title = "R² lost when shuffled"
    x = {"field": "importance", "type": "quantitative", "title": title, "axis": {"tickCount": 6}}
    return plot(
        rows,
        28 * len(rows) + 10,
        encoding={"y": y},
        layer=[
            {
                "mark": {"type": "bar", "color": BLUE, "height": 14},
                "encoding": {"x": x, "tooltip": told},
            },
            {
                "mark": {"type": "rule", "color": INK},
                "encoding": {
                    "x": {"field": "low", "type": "quantitative"},
                    "x2": {"field": "high"},
                },
            },
        ],
    )


def score_against(found: Found, name: str) -> Spec:
    """Draw the score of each trial against one hyperparameter."""
    trials = best_and_others(found.scored, MOST_DRAWN)
    values = [t.values.get(name) for t in trials]
    numeric = is_numeric(values)
    rows = [
        {"p": v if numeric else _word(v), "s": t.score, "t": t.label}
        for t, v in zip(trials, values)
        if not numeric or v is not None
    ]
    told = say("t=run", f"p={_plain(name)}" + ("=n" if numeric else ""), "s=score=n")
    encoding: Spec = {"y": quantity("s", found.monitor), "tooltip": told}
    if numeric:
        encoding["x"] = _number_axis([float(value) for value in values if value is not None])
    else:
        encoding["x"] = {
            "field": "p",
            "type": "nominal",
            "title": None,
            "axis": {"labelAngle": -25, "labelLimit": 120},
        }
    mark = {"type": "point", "filled": True, "color": BLUE, "opacity": 0.7, "size": 36}
    return plot(rows, 170, mark=mark, encoding=encoding)


def _number_axis(values: Sequence[float]) -> Spec:
    """Return an axis of a hyperparameter, logarithmic where values span orders of magnitude."""
    # Vega rounds what it labels to the distance of its ticks: 64 would become 6e+1.
    axis: Spec = {"labelOverlap": "greedy", "labelExpr": "format(datum.value, '.3~g')"}
    scale: Spec = {"nice": False, "padding": 8}
    distinct = sorted(set(values))
    low, high = distinct[0], distinct[-1]
    if spans_orders(values):
        scale["type"] = "log"
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if high / low > 300 else (1, 3) if high / low > 30 else (1, 2, 5)
        marks = [float(f"{step}e{ten}") for ten in tens for step in steps]
        axis["values"] = [mark for mark in marks if low <= mark <= high]
    else:
        scale["zero"] = False
        axis["tickCount"] = 4
    if len(distinct) <= 6:
        axis["values"] = distinct
    return {"field": "p", "type": "quantitative", "title": None, "scale": scale, "axis": axis}


def _word(value: Any) -> str:
    return "none" if value is None else compact(value)


def _plain(name: str) -> str:
    return name.replace("=", " ")


def confusion_square(run: Judged) -> Spec | None:
    """Draw the confusion matrix; colour is the share of a true class, the number counts rows."""
    if len(run.classes) > MOST_CELLS:
        return None
    counts = confusion(run)
    totals = counts.sum(axis=1)
    rows = [
        {
            "true": name,
            "said": other,
            "n": int(counts[i, j]),
            "share": float(counts[i, j] / max(totals[i], 1)),
        }
        for i, name in enumerate(run.classes)
        for j, other in enumerate(run.classes)
    ]
    order = list(run.classes)
    side = min(max(22 * len(order), 240), 640)
    text = "datum.n > 0 ? datum.n : ''"
    told = say("true=true class", "said=predicted", "n=rows=n", "share=share=n")
    return _square(rows, ("said", "predicted"), ("true", "true class"), order, side, text, told)


def agreement_square(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw the share of rows on which two members answer alike."""
    order = list(dict.fromkeys(row["a"] for row in rows))
    apart = [row["share"] for row in rows if row["a"] != row["b"]]
    low, high = min(apart), max(apart)
    # Members mostly agree: colours tell the pairs apart, the numbers say how much.
    rows = [
        {
            **row,
            "level": row["share"],
            "share": 1.0
            if row["a"] == row["b"]
            else 0.1 + 0.6 * (row["share"] - low) / ((high - low) or 1.0),
        }
        for row in rows
    ]
    side = min(max(40 * len(order), 200), 640)
    text = "format(100 * datum.level, '.0f')" if len(order) > 14 else "format(datum.level, '.1%')"
    told = [
        *say("a=member", "b=member and"),
        {"field": "level", "type": "quantitative", "title": "answers alike", "format": ".2%"},
    ]
    return _square(rows, ("b", None), ("a", None), order, side, text, told)


def _square(
    rows: Sequence[Mapping[str, Any]],
    across: tuple,
    down: tuple,
    order: list[str],
    side: int,
    text: str,
    told: list[Spec],
) -> Spec:
    angle = 0 if max(map(len, order)) <= 3 else -40
    numbers = {"type": "text", "fontSize": 11 if len(order) <= 12 else 9}
    x = _names(across, order, {"labelAngle": angle, "labelLimit": 90})
    y = _names(down, order, {"labelLimit": 90})
    shade = {
        "field": "share",
        "type": "quantitative",
        "legend": None,
        "scale": {"domain": [0, 1], "range": [0, 1]},
    }
    readable = {"condition": {"test": "datum.share > 0.7", "value": LIGHT}, "value": INK}
    return plot(
        rows,
        side,
        encoding={"x": x, "y": y, "tooltip": told},
        layer=[
            {
                "mark": {"type": "rect", "color": BLUE, "stroke": LINE, "strokeWidth": 0.5},
                "encoding": {"fillOpacity": shade},
            },
            {
                "transform": [{"calculate": text, "as": "text"}],
                "mark": numbers,
                "encoding": {"text": {"field": "text"}, "color": readable},
            },
        ],
    )


def _names(of: tuple, order: list[str], axis: Spec) -> Spec:
    """Return a side of a square: `of` is its field and title."""
    return {"field": of[0], "type": "nominal", "title": of[1], "sort": order, "axis": axis}


TITLES = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds of one image",
    "images_per_second": "images per second",
}


def against_size(
    rows: Sequence[Mapping[str, Any]], measure: str, front: Sequence[Mapping[str, Any]]
) -> Spec | None:
    """Draw accuracy against what it costs: trials, votes of the first members, the Pareto front."""
    known = [row for row in rows if row[measure] is not None]
    if not known:
        return None
    trials = best_and_others([row for row in known if row["kind"] == "trial"], MOST_DRAWN)
    votes = [row for row in known if row["kind"] == "vote"]
    ends = {0, len(votes) - 1}  # those between would stand on each other
    votes = [{**row, "end": row["number"] if k in ends else ""} for k, row in enumerate(votes)]
    base = {
        "x": {
            "field": measure,
            "type": "quantitative",
            "title": TITLES[measure],
            "scale": {"type": "log", "nice": False, "padding": 14},
            "axis": {"format": ".2~s", "tickCount": 4, "labelOverlap": "greedy", "grid": False},
        },
        "y": quantity("accuracy", "accuracy on validation rows"),
    }
    layers = _size_layers(base, sorted(front, key=lambda row: row[measure]), measure)
    if votes:
        layers += _vote_layers(base)
    return plot([*trials, *votes], 260, layer=layers)


def _size_layers(base: Spec, front: Sequence[Mapping[str, Any]], measure: str) -> list[Spec]:
    """Return the front as a dashed line, and the points."""
    kind = {"field": "kind", "type": "nominal", "title": None}
    colour = {"color": {**kind, "scale": {"domain": KINDS, "range": [BLUE, ORANGE, GREY]}}}
    shapes = {"domain": KINDS[:2], "range": ["circle", "diamond"]}
    shape = {"shape": {**kind, "scale": shapes, "legend": None}}
    costs = [f"{key}={title}=n" for key, title in TITLES.items()]
    told = {"tooltip": say("name=answer", "accuracy=accuracy=n", *costs)}
    step = "step-before" if measure == "images_per_second" else "step-after"
    return [
        {
            "data": {"values": [{**row, "kind": KINDS[2]} for row in front]},
            "mark": {"type": "line", "interpolate": step, "strokeDash": [5, 3], "strokeWidth": 1.5},
            "encoding": {**base, **colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.85},
            "encoding": {**base, **colour, **shape, **told},
        },
    ]


def _vote_layers(base: Spec) -> list[Spec]:
    """Return a line through the votes, and the numbers of members at its ends."""
    votes = {"transform": [{"filter": {"field": "kind", "equal": KINDS[1]}}]}
    return [
        {
            **votes,
            "mark": {"type": "line", "color": ORANGE, "strokeWidth": 1},
            "encoding": {**base, "order": {"field": "number"}},
        },
        {
            **votes,
            "mark": {"type": "text", "dy": -10, "fontSize": 10, "color": INK},
            "encoding": {**base, "text": {"field": "end"}},
        },
    ]


def reliability_line(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw accuracy against confidence; the diagonal is a model that knows what it knows."""
    scale = {"domain": [0, 1]}
    axes = {
        "x": {
            "field": "confidence",
            "type": "quantitative",
            "scale": scale,
            "title": "confidence",
            "axis": {"format": ".0%", "tickCount": 5},
        },
        "y": {
            "field": "accuracy",
            "type": "quantitative",
            "scale": scale,
            "title": "accuracy",
            "axis": {"format": ".0%", "tickCount": 5},
        },
    }
    told = say("confidence=confidence=n", "accuracy=accuracy=n", "rows=rows=n", digits=".3~f")
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    size = {"field": "rows", "type": "quantitative", "legend": None, "scale": {"range": [20, 300]}}
    return plot(
        rows,
        300,
        layer=[
            {
                "data": {"values": ends},
                "mark": {"type": "line", "color": GREY, "strokeDash": [4, 4]},
                "encoding": axes,
            },
            {"mark": {"type": "line", "color": BLUE}, "encoding": axes},
            {
                "mark": {"type": "point", "filled": True, "color": BLUE, "opacity": 1},
                "encoding": {**axes, "size": size, "tooltip": told},
            },
        ],
    )


def class_counts(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw the rows of each class, a colour a split."""
    labels = list(dict.fromkeys(row["label"] for row in rows))[:MOST_CLASSES]
    rows = [row for row in rows if row["label"] in set(labels)]
    splits = list(dict.fromkeys(row["split"] for row in rows))
    order = [s for s in ("train", "val", "test") if s in splits]
    order += sorted(s for s in splits if s not in order)
    place = {name: number for number, name in enumerate(order)}
    rows = [{**row, "order": place[row["split"]]} for row in rows]
    return plot(
        rows,
        20 * len(labels) + 10,
        mark={"type": "bar", "height": 13},
        encoding={
            "y": {"field": "label", "type": "nominal", "sort": labels, "title": None},
            "x": {
                "field": "rows",
                "type": "quantitative",
                "title": "images",
                "stack": "zero",
                "axis": {"tickMinStep": 1, "tickCount": 8},
            },
            "color": {"field": "split", "type": "nominal", "scale": {"domain": order}},
            "order": {"field": "order"},
            "tooltip": say("label=class", "split=split", "rows=images=n", digits=",d"),
        },
    )
