"""Configuration files: JSON and YAML, read without surprises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ballot.config.layers import Layer
from ballot.config.schema import _each_once, _Twice
from ballot.config.templates import translate
from ballot.errors import UserError
from ballot.values import Json

MANY = 100_000  # values in a YAML file


def _literal(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except _Twice as error:
        raise UserError(f"command line: duplicate key {error}; keep one") from None
    except (ValueError, RecursionError):  # a text, or thousands of digits or of brackets
        return text


def read_config_file(path: str | Path) -> Layer:
    """Read a JSON or YAML file of options; anything else is a `UserError` that names it."""
    return read_config_files([path])[0]


def read_config_files(paths: Iterable[str | Path]) -> list[Layer]:
    """Read files of options, ours or another template's; the files of one project are one layer."""
    layers: list[Layer | str] = []  # the kind of a template stands for the layer of its files
    files: dict[str, list[tuple[str, Json]]] = {}
    for path in paths:
        values = _read_values(Path(path))
        kind = translate.recognise(values)
        if kind is None:
            layers.append(Layer(str(path), values))
            continue
        if kind not in files:
            layers.append(kind)
        files.setdefault(kind, []).append((str(path), values))
    read = {
        kind: Layer(" + ".join(name for name, _ in group), *translate.translate(group, kind))
        for kind, group in files.items()
    }
    return [read[layer] if isinstance(layer, str) else layer for layer in layers]


def _read_values(path: Path) -> Json:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    yaml = path.suffix in (".yml", ".yaml")
    values = _decoded(parse_yaml(text, path)) if yaml else parse_json(text, path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: contains a {type(values).__name__}; options must be in an object")
    if set(values) == {"values", "origin"}:  # a run's config.json
        values = values["values"]
    return values


def _decoded(node: object) -> object:
    """Read what YAML leaves as text and people mean as numbers: 1e-3, and (32, 32)."""
    if isinstance(node, dict):
        return {key: _decoded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_decoded(value) for value in node]
    if isinstance(node, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", node):
        return float(node)
    if isinstance(node, str) and re.fullmatch(r"\([-+.,\deE\s]+\)", node):
        return [_literal(word.strip()) for word in node[1:-1].split(",") if word.strip()]
    return node


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
        if isinstance(node, (dict, list)):
            waiting += node.values() if isinstance(node, dict) else node
    return value
