"""Types of data that crosses modules: what a person or a tuner sets, and what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]  # by the names of options, parameters or columns; not to be changed
Json = dict[str, Any]  # an object of a JSON or YAML file


@dataclass(frozen=True)
class Layer:
    """Values from one source, not yet checked; keys may be nested, dotted or in kebab-case."""

    name: str
    values: Mapping[str, object]
    notes: tuple[str, ...] = ()  # what became of another template's words, for people
