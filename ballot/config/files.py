"""Configuration files: JSON and YAML, read without surprises."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ballot.config.parsing import parse_json, parse_literal, parse_yaml
from ballot.config.templates import translate
from ballot.errors import UserError
from ballot.values import Json, Layer


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
        return [parse_literal(word.strip()) for word in node[1:-1].split(",") if word.strip()]
    return node
