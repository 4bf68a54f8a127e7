"""Search spaces: checked against `Config`, counted, and their smallest and largest members."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ballot.config.layers import flatten
from ballot.config.schema import COMPONENTS, OWN_FIELDS, convert
from ballot.errors import UserError, suggest
from ballot.values import Json, Layer, Values

# How many numbers each type of a search space takes.
SPACE_TYPES = {
    "choice": None,
    "randint": 2,
    "uniform": 2,
    "quniform": 3,
    "loguniform": 2,
    "qloguniform": 3,
    "normal": 2,
    "qnormal": 3,
    "lognormal": 2,
    "qlognormal": 3,
}
BOUNDED = ("randint", "uniform", "quniform", "loguniform", "qloguniform")
SPEC = '{"_type": "choice", "_value": [...]}'

# What no tuner may set, and why.
FIXED = {
    "monitor": "scores of different kinds cannot be compared",
    "out_dir": "the vote looks for all trials in one folder",
    "split_seed": "trials on other validation rows cannot be compared",
    "run_name": "trials of a search are named by the search",
    "resume": "trials of a search continue their own run",
    "plugins": "its files are run as a program",
    "model_dir": "all weights are collected in one folder",
    "log_config": "it names programs to log with, and files",
    "init_from": "it names a file, and all trials start alike",
    "exclude": "it names a file, and all trials train on the same rows",
    "processes": "a trial of a search has one process",
    "experiment": "all trials are tracked in one place",
}
ROWS = (
    *("dataset", "data_dir", "train_dir", "val_dir"),
    *("val_ratio", "val_rows", "folds", "fold", "split_column", "group_column"),
    "near_duplicates",
)


def find_problems(space: Values, source: str, *, ours: bool = True) -> list[UserError]:
    """Return everything that is wrong with a search space, nested choices included.

    `ours` says that its keys are options of train.py, and not those of a script of another.
    """
    found: list[UserError] = []
    for key, spec in space.items():
        try:
            found += _problems_of(key, spec, source, ours)
        except UserError as error:
            found.append(error)
    return list({str(error): error for error in found}.values())


def _problems_of(key: str, spec: Any, source: str, ours: bool) -> list[UserError]:
    if not is_spec(spec):
        raise UserError(f"{source}: {key} is not a search range; write {key}: {SPEC}")
    kind, values = spec["_type"], spec["_value"]
    if kind not in SPACE_TYPES:
        raise UserError(f"{source}: {key} has type {kind!r}{suggest(kind, SPACE_TYPES)}")
    if key in FIXED and ours:
        raise UserError(
            f"{source}: {key} is searched, but {FIXED[key]}; fix it in the trial command"
        )
    _check_values(key, kind, values, source)
    candidates = values if kind == "choice" else values[:2] if kind in BOUNDED else values[:1]
    inner = [len(v) - 1 if isinstance(v, Mapping) and "_name" in v else -1 for v in candidates]
    if max(inner) > 0 and min(inner) < 0:
        raise UserError(
            f"{source}: {key} mixes names and nested options, which no tuner "
            'samples; write every name as {"_name": ...}'
        )
    found: list[UserError] = []
    for value in candidates if ours else ():
        try:
            found += _problems_of_candidate(key, value, source)
        except UserError as error:
            found.append(error)
            if kind != "choice":
                break
    return found


def _check_values(key: str, kind: str, values: Any, source: str) -> None:
    wanted = SPACE_TYPES[kind]
    if not isinstance(values, list) or not values or (wanted and len(values) != wanted):
        raise UserError(
            f"{source}: {key} ({kind}) takes {wanted or 'one or more'} values in a list"
        )
    if kind == "choice":
        return
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise UserError(f"{source}: {key} ({kind}) takes numbers, not {values}")
    if kind in BOUNDED and values[0] >= values[1]:
        raise UserError(
            f"{source}: {key} ranges from {values[0]} to {values[1]}; put the lower value first"
        )
    if "log" in kind and kind in BOUNDED and values[0] <= 0:
        raise UserError(f"{source}: {key} ({kind}) must start above 0")
    if kind.startswith("q") and values[2] <= 0:
        raise UserError(f"{source}: {key} ({kind}) has step {values[2]}; it must be greater than 0")


def _problems_of_candidate(key: str, value: Any, source: str) -> list[UserError]:
    if isinstance(value, Mapping) and "_name" in value and key == "recipe":
        convert(key, value["_name"], source)
        return find_problems({k: v for k, v in value.items() if k != "_name"}, source)
    if isinstance(value, Mapping) and "_name" in value and key in COMPONENTS:
        found: list[UserError] = []
        for inner, spec in value.items():
            if inner == "_name":
                continue
            if not is_spec(spec):
                right = f'{{"_type": "choice", "_value": [{spec!r}]}}'
                raise UserError(
                    f"{source}: {key}.{inner} is fixed to {spec!r}, which is "
                    f"no range; write {right}"
                )
            own = inner in OWN_FIELDS.get(key, ())
            found += find_problems({inner if own else f"{key}_args.{inner}": spec}, source)
        return found
    for name, part in flatten(Layer(source, {key: value})):
        if "." not in name:
            convert(name, part, source)
    return []


def is_spec(value: Any) -> bool:
    """Tell whether a value is a range to search: an object with `_type` and `_value`."""
    return isinstance(value, Mapping) and "_type" in value and "_value" in value


def count(space: Values) -> float:
    """Return how many configurations a valid search space holds; `inf` where one is continuous."""
    return math.prod(_count_of(spec) for key, spec in space.items() if key != "_name")


def _count_of(spec: Values) -> float:
    kind, values = spec["_type"], spec["_value"]
    if kind == "choice":
        return sum(count(v) if isinstance(v, Mapping) and "_name" in v else 1 for v in values)
    if kind == "randint":
        return values[1] - values[0]
    if kind == "quniform":
        low, high, step = values
        return len(
            {
                min(max(k * step, low), high)
                for k in range(round(low / step), round(high / step) + 1)
            }
        )
    return math.inf


def corners(space: Values) -> list[Json]:
    """Return the smallest configuration, then the largest one for each choice of `model`.

    In a tuner's own form. Every number is at its low or its high end, where one more part of a
    batch makes for less memory, and not more.
    """
    models = space.get("model", {}).get("_value", [None])
    largest = []
    for model in models:
        narrowed = dict(space)
        if model is not None:
            narrowed["model"] = {"_type": "choice", "_value": [model]}
        largest.append(_at_end(narrowed, high=True))
    return [_at_end(space, high=False), *largest]


def each_component(space: Values) -> list[Json]:
    """Return configurations in which every choice of a component stands once, low and high."""
    base, found = _at_end(space, high=False), []
    for key in COMPONENTS:
        if key not in space or space[key]["_type"] != "choice":
            continue
        for value, high in itertools.product(space[key]["_value"], (False, True)):
            made = {**base, key: _inner(value, high)}
            if made not in found:
                found.append(made)
    return found


def _at_end(space: Values, *, high: bool) -> Json:
    return {key: _end_of(spec, high != (key == "accum_steps")) for key, spec in space.items()}


def _end_of(spec: Values, high: bool) -> Any:
    kind, values = spec["_type"], spec["_value"]
    if kind == "choice":
        numbers = all(isinstance(v, (int, float)) for v in values)
        chosen = (max if high else min)(values) if numbers else values[0]
        return _inner(chosen, high)
    if kind == "randint":
        return values[1] - 1 if high else values[0]
    if kind not in BOUNDED:  # without ends: the middle
        middle = math.exp(values[0]) if "log" in kind else values[0]
        return round(middle / values[2]) * values[2] if kind.startswith("q") else middle
    end = values[1] if high else values[0]
    if kind.startswith("q"):
        end = min(max(round(end / values[2]) * values[2], values[0]), values[1])
    return end


def _inner(value: object, high: bool) -> object:
    if not isinstance(value, Mapping) or "_name" not in value:
        return value
    rest = {key: spec for key, spec in value.items() if key != "_name"}
    return {"_name": value["_name"], **_at_end(rest, high=high)}


def keys_of(space: Values) -> Iterator[str]:
    """Yield every option that the search space sets, those of nested choices too."""
    for key, spec in space.items():
        yield key
        for value in spec["_value"] if spec["_type"] == "choice" else ():
            if isinstance(value, Mapping) and "_name" in value and key == "recipe":
                yield from (k for k in value if k != "_name")
            elif isinstance(value, Mapping) and "_name" in value and key in COMPONENTS:
                own = OWN_FIELDS.get(key, ())
                yield from (k if k in own else f"{key}_args.{k}" for k in value if k != "_name")
