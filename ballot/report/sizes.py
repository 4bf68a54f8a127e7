"""What accuracy costs: parameters, multiply-adds and speed of the trials and of the first votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballot.report.trials import Found, finite
from ballot.runs.folder import read_result, run_of
from ballot.values import Json

# What is drawn: the field of a row, and whether less of it is better.
MEASURES = {"parameters": True, "multiply_adds": True, "images_per_second": False}


@dataclass(frozen=True)
class Size:
    """The cost of an answer: `seconds` and `multiply_adds` are of one image, all views included."""

    parameters: float
    multiply_adds: float | None
    seconds: float | None

    def __add__(self, other: Size) -> Size:
        return Size(
            self.parameters + other.parameters,
            _sum(self.multiply_adds, other.multiply_adds),
            _sum(self.seconds, other.seconds),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def size_of(result: Mapping[str, Any]) -> Size | None:
    """Return what the answer of a run costs: its folds are networks, its views are passes."""
    network = result.get("network")
    parameters = finite(network.get("parameters")) if isinstance(network, Mapping) else None
    if not isinstance(network, Mapping) or not parameters:
        return None
    views = result.get("tta")
    folds = views if isinstance(views, list) and views else [views]
    passes = sum(_passes(fold) for fold in folds)
    madds, speed = finite(network.get("multiply_adds")), finite(network.get("images_per_second"))
    return Size(
        parameters * len(folds),
        None if madds is None else madds * passes,
        passes / speed if speed else None,
    )


def _passes(views: object) -> int:
    """Return how often a network looks at one image."""
    return int(finite(views.get("passes")) or 1) if isinstance(views, Mapping) else 1


def rows_of(found: Found, told: Mapping[str, Any] | None) -> list[Json]:
    """Return a row for each trial and each vote whose cost and accuracy on validation are known."""
    members = {row["name"]: row for row in told["members"]} if told else {}
    rows = []
    for trial in found.scored:
        scores = trial.result.get("scores") or {}
        value = (members.get(trial.name) or {}).get("val", {}).get("acc", scores.get("val_acc"))
        size = size_of(trial.result)
        if size is not None and finite(value) is not None:
            rows.append(_row("trial", trial.label, value, size))
    return rows + (_votes(found, told, members) if told else [])


def _votes(found: Found, told: Mapping[str, Any], members: Mapping[str, Any]) -> list[Json]:
    """Return a row for the votes of the first member, of the first two, and so on."""
    results = {trial.name: trial.result for trial in found.trials}
    total: Size | None = None
    rows: list[Json] = []
    for number, step in enumerate(told["by_size"], start=1):
        member = members.get(step.get("name")) or {}
        size = _size_of_member(member.get("files") or [], results)
        value = finite((step.get("val") or {}).get("acc"))
        if size is None or value is None:
            break
        total = size if total is None else total + size
        rows.append({**_row("vote", f"vote of {number}", value, total), "number": number})
    return rows


def _size_of_member(files: Sequence[Path], results: Mapping[str, Json]) -> Size | None:
    """Return what a member costs: its runs together; a soup is one network like those in it."""
    total: Size | None = None
    for file in files:
        result = results.get(run_of(file).name) or read_result(run_of(file))
        if soup := result.get("soup"):
            result = results.get(str(soup[0])) or {}
        size = size_of(result)
        if size is None:
            return None
        total = size if total is None else total + size
    return total


def _row(kind: str, name: str, accuracy: float, size: Size) -> Json:
    return {
        "kind": kind,
        "name": name,
        "accuracy": round(float(accuracy), 5),
        "parameters": size.parameters,
        "multiply_adds": size.multiply_adds,
        "images_per_second": None if size.seconds is None else float(f"{1 / size.seconds:.4g}"),
    }


def front_of(rows: Sequence[Json], measure: str) -> list[Json]:
    """Return the Pareto front, the cheapest first: no other row is as cheap and as good."""
    sign = 1 if MEASURES[measure] else -1
    known = [row for row in rows if row[measure] is not None]
    best, front = float("-inf"), []
    for row in sorted(known, key=lambda row: (sign * row[measure], -row["accuracy"])):
        if row["accuracy"] > best:
            best = row["accuracy"]
            front.append(row)
    return front


def on_a_front(rows: Sequence[Json]) -> list[Json]:
    """Return the rows that are on the front of any measure, the most accurate first."""
    kept = [row for measure in MEASURES for row in front_of(rows, measure)]
    return sorted(
        (row for row in rows if any(row is other for other in kept)),
        key=lambda row: (-row["accuracy"], row["parameters"]),
    )
