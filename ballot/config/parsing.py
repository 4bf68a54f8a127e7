"""Text of JSON and YAML becomes values; a mistake is a `UserError` with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ballot.errors import UserError
from ballot.values import Json

MANY = 100_000  # values in a YAML file


def parse_literal(text: str) -> object:
    """Parse a value as JSON where it is JSON; anything else is a text."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except _Twice as error:
        raise UserError(f"command line: duplicate key {error}; keep one") from None
    except (ValueError, RecursionError):  # a text, or thousands of digits or of brackets
        return text


def parse_json(text: str, path: str | Path) -> object:
    """Parse JSON; a mistake is a `UserError` with the line, and so is a key that stands twice."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except _Twice as error:
        raise UserError(f"{path}: duplicate key {error}; keep one") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: is not valid JSON; {error.msg} at {where}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(f"{path}: cannot be read as JSON; {error}") from None


def parse_yaml(text: str, path: str | Path) -> Any:
    """Parse YAML (plain data only); a mistake is a `UserError` with the line."""
    import yaml

    from ballot.config import strict_yaml

    try:
        value = strict_yaml.load(text)
    except strict_yaml.BadKey as error:
        raise UserError(f"{path}: line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: is not valid YAML; {reason}{where}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(f"{path}: cannot be read as YAML; {error}") from None
    # An alias costs nothing to read, but whoever walks through may never come to an end.
    waiting, seen = [value], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MANY:
            raise UserError(f"{path}: contains itself, or more than {MANY:,} values")
        if isinstance(node, str) and "\0" in node:
            raise UserError(f"{path}: {node!r} contains NUL, which no name and no command can")
        if isinstance(node, (dict, list)):
            waiting += node.values() if isinstance(node, dict) else node
    return value


class _Twice(ValueError):
    """A key of JSON that stands twice in one object."""


def _each_once(pairs: list[tuple[str, Any]]) -> Json:
    """Make an object of JSON, in which Python lets the last of two keys win."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(repr(next(name for name in names if names.count(name) > 1)))
    return made
