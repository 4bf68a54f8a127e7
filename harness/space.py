"""Search spaces: every key, type and value against `Config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config import COMPONENTS, OWN_FIELDS, Layer, convert, flatten
from harness.errors import UserError, suggest

# How many numbers each type of NNI's search space takes, and which of them are values of the field.
SPACE_TYPES = {
    "choice": None, "randint": 2, "uniform": 2, "quniform": 3, "loguniform": 2, "qloguniform": 3,
    "normal": 2, "qnormal": 3, "lognormal": 2, "qlognormal": 3,
}  # fmt: skip
BOUNDED = ("randint", "uniform", "quniform", "loguniform", "qloguniform")


def check_search_space(space: Mapping[str, Any], source: str) -> None:
    """Check every key, type and value against `Config`, nested choices too."""
    for key, spec in space.items():
        if not isinstance(spec, Mapping) or "_type" not in spec or "_value" not in spec:
            raise UserError(f'{source}: {key} needs {{"_type": "choice", "_value": [...]}}')
        kind, values = spec["_type"], spec["_value"]
        if kind not in SPACE_TYPES:
            raise UserError(f"{source}: {key} has type {kind!r}{suggest(kind, SPACE_TYPES)}")
        _check_values(key, kind, values, source)
        candidates = values if kind == "choice" else values[:2] if kind in BOUNDED else values[:1]
        for value in candidates:
            _check_candidate(key, value, source)


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
            f"{source}: {key} goes from {values[0]} to {values[1]}; put the lower first"
        )
    if "log" in kind and kind in BOUNDED and values[0] <= 0:
        raise UserError(f"{source}: {key} ({kind}) must start above 0")


def _check_candidate(key: str, value: Any, source: str) -> None:
    if isinstance(value, Mapping) and "_name" in value and key in COMPONENTS:
        for inner, spec in value.items():
            own = inner in OWN_FIELDS.get(key, ())
            if isinstance(spec, Mapping):
                check_search_space({inner if own else f"{key}_args.{inner}": spec}, source)
        return
    for name, part in flatten(Layer(source, {key: value})):
        if "." not in name:
            convert(name, part, source)
