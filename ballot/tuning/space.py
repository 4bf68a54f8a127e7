"""A search space in numbers: each option is a dimension, and a configuration is a point.

What people write, `{"lr": {"_type": "loguniform", "_value": [0.001, 0.1]}}`, is parsed into
dimensions by key. A point is `{key: number}`: the index of a value for `choice` and `randint`, the
value itself for a range, its logarithm for a log range. An option of a nested choice has the key
`(option, index of the choice, inner option)` and is missing where another choice was taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtr, ndtri

from ballot.errors import UserError, suggest
from ballot.values import Json

DIGITS = 10  # of a number that a trial is given
SMALLEST = 1e-12  # part of a range that the grid still divides

Key = tuple[str | int, ...]
Point = dict[Key, float]
Values = Json  # as a trial gets them


@dataclass(frozen=True)
class Dimension:
    """One option of a search space and how its values are distributed."""

    key: Key
    kind: str  # choice, randint, uniform, ...
    values: Sequence[Any]  # as a person wrote them
    size: int | None = None  # number of values of a choice or randint, None for a range
    low: float = 0.0  # ends of a bounded range, logarithms where it is one of a log kind
    high: float = 0.0
    mu: float = 0.0  # of a normal distribution, of the logarithms where it is lognormal
    sigma: float = 0.0
    step: float | None = None  # of the q kinds

    @property
    def is_categorical(self) -> bool:
        """Tell whether its values are counted: a choice, or whole numbers."""
        return self.size is not None

    @property
    def is_log(self) -> bool:
        """Tell whether a point holds the logarithms of its values."""
        return "log" in self.kind

    @property
    def is_normal(self) -> bool:
        """Tell whether it has no ends."""
        return "normal" in self.kind

    @property
    def is_nested(self) -> bool:
        """Tell whether it is an option of a nested choice."""
        return len(self.key) > 2

    @property
    def has_order(self) -> bool:
        """Tell whether its values lie in an order: ranges, and choices of rising numbers."""
        if self.kind != "choice":
            return True
        numbers = all(_is_number(value) for value in self.values)
        return numbers and list(self.values) == sorted(self.values) and len(self.values) > 2

    def is_active(self, point: Mapping[Key, float]) -> bool:
        """Tell whether the choice that it belongs to is taken."""
        return not self.is_nested or point.get(self.key[:-2]) == self.key[-2]

    def to_unit(self, x: float) -> float:
        """Return where a number of a dimension with an order lies in 0..1, its prior even."""
        if self.size is not None:
            return (x + 0.5) / self.size
        if self.is_normal:
            return float(ndtr((x - self.mu) / self.sigma)) if self.sigma else 0.5
        return (x - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def from_unit(self, u: float) -> float:
        """Return the number at a place in 0..1; the opposite of `to_unit`."""
        if self.size is not None:
            return int(min(u * self.size, self.size - 1))
        if self.is_normal:
            return self.mu + self.sigma * float(ndtri(min(max(u, 1e-9), 1 - 1e-9)))
        return self.low + u * (self.high - self.low)

    def value_of(self, x: float) -> Any:
        """Return the value that a trial gets for a number, rounded as a person would write it."""
        if self.kind == "choice":
            value = self.values[int(x)]
            return {"_name": value["_name"]} if _is_nested(self.values) else value
        if self.kind == "randint":
            return math.ceil(self.values[0]) + int(x)
        if self.is_log:
            x = math.exp(x)
        if self.step is not None:
            x = round(x / self.step) * self.step
            if not self.is_normal:
                x = min(max(x, float(self.values[0])), float(self.values[1]))
        return float(f"{x:.{DIGITS}g}")

    def number_of(self, value: Any, *, clip: bool = False) -> float | None:
        """Return the number of a value, None where it is none of this dimension's.

        `clip` moves a number that lies outside of the range to the nearest end.
        """
        if self.kind == "choice":
            return _index_of(self.values, value, nearest=clip and _is_number(value))
        if not _is_number(value):
            return None
        if self.is_log and value <= 0:
            if not self.step:
                return None
            value = self.step / 4  # was rounded down to nothing
        low, high = self._ends()
        if clip:
            value = min(max(value, low), high)
        if not low <= value <= high and not any(math.isclose(value, end) for end in (low, high)):
            return None
        if self.size is not None:
            return round(value) - low
        return math.log(value) if self.is_log else value

    def _ends(self) -> tuple[float, float]:
        if self.is_normal:
            return -math.inf, math.inf
        low, high = self.values[:2]
        if self.size is None:
            return low, high
        return math.ceil(low), math.ceil(low) + self.size - 1


Space = dict[Key, Dimension]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_nested(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Mapping) and "_name" in value for value in values)


def _name_of(value: object) -> object:
    return value["_name"] if isinstance(value, Mapping) and "_name" in value else value


def _index_of(values: Sequence[object], value: Any, *, nearest: bool) -> int | None:
    names = [_name_of(each) for each in values]
    if _name_of(value) in names:
        return names.index(_name_of(value))
    numbers = [name for name in names if _is_number(name)]
    if not nearest or not numbers:
        return None
    return names.index(min(numbers, key=lambda number: abs(number - value)))


# ------------------------------------------------------------------------------------ parsing


def parse(space: Mapping[str, Any]) -> Space:
    """Return the dimensions of a search space, those of nested choices after their choice."""
    return {dimension.key: dimension for dimension in _dimensions((), space)}


def _dimensions(above: Key, space: Mapping[str, Any]) -> Iterator[Dimension]:
    for name, spec in space.items():
        if name == "_name":
            continue
        kind, values = spec["_type"], spec["_value"]
        yield _dimension((*above, name), kind, values)
        if kind == "choice" and _is_nested(values):
            for index, inner in enumerate(values):
                yield from _dimensions((*above, name, index), inner)


def _dimension(key: Key, kind: str, values: Sequence[Any]) -> Dimension:
    if kind == "choice":
        return Dimension(key, kind, values, size=len(values))
    if kind == "randint":
        return Dimension(key, kind, values, size=math.ceil(values[1]) - math.ceil(values[0]))
    first, second = float(values[0]), float(values[1])
    step = float(values[2]) if kind.startswith("q") else None
    if "normal" in kind:
        return Dimension(key, kind, values, mu=first, sigma=second, step=step)
    if "log" in kind:
        first, second = math.log(first), math.log(second)
    return Dimension(key, kind, values, low=first, high=second, step=step)


# ------------------------------------------------------------------------- points and values


def values_of(space: Space, point: Mapping[Key, float]) -> Values:
    """Return a point as a trial gets it, nested choices as `{"_name": ..., option: ...}`."""
    values: Values = {}
    for key, dimension in space.items():
        if key in point:
            inside = values
            for name in key[:-1]:
                if isinstance(name, str):
                    inside = inside[name]
            inside[str(key[-1])] = dimension.value_of(point[key])
    return values


def locate(space: Space, look_up: Callable[[Key], object], *, clip: bool = False) -> Point:
    """Return where values lie; a key whose value has no place in the space is missing."""
    point: Point = {}
    for key, dimension in space.items():
        if dimension.is_active(point):
            number = dimension.number_of(look_up(key), clip=clip)
            if number is not None:
                point[key] = number
    return point


def point_of(space: Space, values: Mapping[str, object]) -> Point | None:
    """Return a trial's values as a point, None where they lie outside of the space."""
    point = locate(space, lambda key: look_up(values, key))
    return point if point and is_whole(space, point) else None


def is_whole(space: Space, point: Mapping[Key, float]) -> bool:
    """Tell whether a point has a number for each dimension that is active in it."""
    return all(key in point for key, dimension in space.items() if dimension.is_active(point))


def look_up(values: object, key: Key, missing: object = None) -> object:
    """Return the value of a key in a trial's values."""
    for name in key:
        if isinstance(name, str):
            if not isinstance(values, Mapping) or name not in values:
                return missing
            values = values[name]
    return values


def partial_point(space: Space, values: Mapping[str, object], source: str) -> Point:
    """Return where values lie that need not be complete; one without a place is a `UserError`."""
    point: Point = {}
    missing = object()
    for key, dimension in space.items():
        value = look_up(values, key, missing) if dimension.is_active(point) else missing
        if value is missing:
            continue
        number = dimension.number_of(value)
        name = ".".join(part for part in key if isinstance(part, str))
        if number is None:
            limits = f"{dimension.kind} {[_name_of(each) for each in dimension.values]}"
            raise UserError(
                f"{source}: {name} is {_name_of(value)!r}, outside of the search space "
                f"({limits}); change one of them"
            )
        point[key] = number
    active = [key for key, dimension in space.items() if dimension.is_active(point)]
    _check_names(point, values, source, active)
    return point


def _check_names(
    point: Point, values: Mapping[str, object], source: str, active: Sequence[Key], above: Key = ()
) -> None:
    known = {str(key[-1]): key for key in active if key[:-1] == above}
    for name, value in values.items():
        if name == "_name" and above:
            continue
        if name not in known:
            option = ".".join([*(part for part in above if isinstance(part, str)), name])
            raise UserError(f"{source}: {option} is not searched{suggest(name, known)}")
        if isinstance(value, Mapping) and "_name" in value:
            key = known[name]
            _check_names(point, value, source, active, (*key, int(point[key])))


# --------------------------------------------------------------------------------------- grid


def grid(space: Space) -> Iterator[Point]:
    """Yield the points of a space in order, ranges at finer and finer steps.

    It ends where every choice was taken and no finer step gives a new value.
    """
    axes = [_axis(dimension) for dimension in space.values()]
    places: list[list[float]] = [[] for _ in axes]
    while True:
        old = [len(each) for each in places]
        ended = 0
        for axis, each in zip(axes, places):
            finer = next(axis, None)
            ended += finer is None
            each += finer or []
        if ended == len(axes):
            return
        yield from (point for point, new in _products(space, places, old) if new)


def _axis(dimension: Dimension) -> Iterator[list[float]]:
    """Yield the numbers of a dimension's first grid, then those that each finer one adds."""
    if dimension.size is not None:
        yield list(range(dimension.size))
        return

    def value(u: float) -> object:
        return dimension.value_of(dimension.from_unit(u))

    seen: set[object] = set()
    parts = [(0.0, 1.0)]
    while parts:
        halves, added = [], []
        for low, high in parts:
            middle = (low + high) / 2
            if value(middle) not in seen:
                seen.add(value(middle))
                added.append(dimension.from_unit(middle))
            if high - low > SMALLEST:
                halves += [
                    half
                    for half in ((low, middle), (middle, high))
                    if value(half[0]) != value(half[1])
                ]
        yield added
        parts = halves


def _products(
    space: Space, places: Sequence[Sequence[float]], old: Sequence[int]
) -> Iterator[tuple[Point, bool]]:
    """Yield each point of a grid, and whether one of its numbers is not old."""
    dimensions = list(space.values())

    def extend(depth: int, point: Point, new: bool) -> Iterator[tuple[Point, bool]]:
        if depth == len(dimensions):
            yield dict(point), new
            return
        dimension = dimensions[depth]
        if not dimension.is_active(point):
            yield from extend(depth + 1, point, new)
            return
        for place, number in enumerate(places[depth]):
            point[dimension.key] = number
            yield from extend(depth + 1, point, new or place >= old[depth])
        point.pop(dimension.key, None)

    return extend(0, {}, False)
