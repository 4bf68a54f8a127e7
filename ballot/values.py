"""Types of data that crosses modules: what a person or a tuner sets, and what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]  # by the names of options, parameters or columns; not to be changed
Json = dict[str, Any]  # an object of a JSON or YAML file
