"""Configuration files: JSON and YAML, our own and those of other PyTorch templates.

These are recognised by their shape:

parts      model, data and environment in one JSON file or in three
template   config.json with arch, data_loader, trainer and the like
yaml       nested upper-case YAML over defaults: TRAIN.LR, DATA.DATASET_TYPE, MODEL_TYPE

What each key becomes is printed, and what has no counterpart is named. The tables are in
docs/moving.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ballot.config.parsing import parse_json, parse_literal, parse_yaml
from ballot.config.templates.keys import walk
from ballot.config.templates.reading import TEMPLATES, Reading, settle
from ballot.errors import UserError
from ballot.values import Json, Layer, Values

PARTS = ("model", "data", "env", "environment")
# Keys that only a project of three parts has, at the top of a file or of a part.
MARKS = {
    "backbone",
    "head",
    "cls_head",
    "loss_cls",
    "num_class",
    "evaluation",
    "train",
    "val",
    "validation",
    "dummy",
    "train_freq",
    "val_freq",
    "start_epoch",
    "distributed",
    "world_size",
    "dist_url",
    "dist_backend",
    "ngpus_per_node",
    "weight_load",
    "weight_dir",
}


def read_config_file(path: str | Path) -> Layer:
    """Read a JSON or YAML file of options; anything else is a `UserError` that names it."""
    return read_config_files([path])[0]


def read_config_files(paths: Iterable[str | Path], *, over_a_run: bool = False) -> list[Layer]:
    """Read files of options, ours or another template's; the files of one project are one layer.

    What a project of a template leaves out means something, but not where it is laid `over_a_run`.
    """
    layers: list[Layer | str] = []  # the kind of a template stands for the layer of its files
    files: dict[str, list[tuple[str, Json]]] = {}
    for path in paths:
        values = _read_values(Path(path))
        kind = recognise(values)
        if kind is None:
            layers.append(Layer(str(path), values))
            continue
        if kind not in files:
            layers.append(kind)
        files.setdefault(kind, []).append((str(path), values))
    read = {
        kind: Layer(" + ".join(name for name, _ in group), *translate(group, kind, over_a_run))
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


def recognise(values: Values) -> str | None:
    """Name the template that a configuration is written for; None for our own words."""
    if any(re.fullmatch(r"[A-Z][A-Z0-9_]+", str(key)) for key in values):
        return "yaml"
    if any(isinstance(values.get(key), Mapping) for key in ("trainer", "arch", "data_loader")):
        return "template"
    inner = [part for key, part in values.items() if key in PARTS and isinstance(part, Mapping)]
    inner = [part for part in inner if part.get("type") != "backbone_head"]  # ours, nested
    if MARKS & {str(key) for part in (values, *inner) for key in part}:
        return "parts"
    return None


def translate(
    files: Sequence[tuple[str, Values]], kind: str, over_a_run: bool = False
) -> tuple[Json, tuple[str, ...]]:
    """Read the files of one project; return values in our words, and the lines to be told.

    Parts say different things; of other templates a later file is laid over the earlier ones.
    """
    source = " + ".join(name for name, _ in files)
    reading = Reading(source, kind, whole=not over_a_run, over_a_run=over_a_run)
    nodes: list[Values] = [values for _, values in files]
    if kind != "parts":
        nodes = [functools.reduce(laid_over, nodes)]
    for values in nodes:
        walk(reading, values, (), None)
    settle(reading)
    return reading.values, notes(reading)


def laid_over(below: Values, above: Values) -> Json:
    """Lay sections over sections; a component of another type brings its own arguments."""
    done = dict(below)
    for key, value in above.items():
        old = done.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other = value.get("type", old.get("type")) != old.get("type")
            done[key] = dict(value) if other else laid_over(old, value)
        else:
            done[key] = value
    return done


def notes(reading: Reading) -> tuple[str, ...]:
    """Return three lists, a line a key: what was done, what is the same without it, and the rest.

    The keys without a counterpart stand in one line, with the reasons.
    """
    lines = [f"{reading.source}: {TEMPLATES[reading.kind]}, read as"]
    wide = min(max((len(old) for old, _ in reading.told), default=0), 60)
    lines += [f"  {old:<{wide}} -> {new}" for old, new in reading.told]
    if reading.alike:
        lines.append(f"{reading.source}: the same without")
        lines += [f"  {old}" + (f" ({why})" if why else "") for old, why in reading.alike]
    if reading.lost:
        why = {
            reason: [o for o, r in reading.lost.items() if r == reason]
            for reason in sorted(set(reading.lost.values()))
        }
        named = [
            ", ".join(olds) + (f" ({reason})" if reason else "") for reason, olds in why.items()
        ]
        lines.append(f"warning: {reading.source}: without a counterpart: {'; '.join(named)}")
    return tuple(lines)
