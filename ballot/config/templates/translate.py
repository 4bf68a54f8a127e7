"""Configurations of other PyTorch templates, recognised by their shape and read as our own.

parts      model, data and environment in one JSON file or in three
template   config.json with arch, data_loader, trainer and the like
yaml       nested upper-case YAML over defaults: TRAIN.LR, DATA.DATASET_TYPE, MODEL_TYPE

What a key becomes is told; what has no counterpart is named. docs/moving.md has the tables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from ballot.config.templates.keys import walk
from ballot.config.templates.reading import TEMPLATES, Reading, settle
from ballot.values import Json, Values

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


def translate(files: Sequence[tuple[str, Values]], kind: str) -> tuple[Json, tuple[str, ...]]:
    """Read the files of one project; return values in our words, and the lines to be told.

    Parts say different things; of other templates a later file is laid over the earlier ones.
    """
    reading = Reading(" + ".join(name for name, _ in files), kind)
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
