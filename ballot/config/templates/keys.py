"""Single keys of other templates, as a search space names them: `optimizer;args;lr`, `TRAIN.LR`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ballot.config.schema import COMPONENTS, DICT_FIELDS, FIELDS
from ballot.config.templates import translate
from ballot.config.templates.reading import Reading, settle
from ballot.errors import UserError


def is_theirs(key: str) -> bool:
    """Tell whether a key is a path in a file of another template: `arch;args;dropout`."""
    parts = re.split("[;.]", key)
    if ";" in key or re.fullmatch(r"[A-Z][A-Z0-9_]+", parts[0]):
        return True
    if parts[0] in FIELDS:
        return parts[1:2] == ["args"] or (len(parts) > 2 and parts[0] in COMPONENTS)
    return len(parts) > 1 and parts[0] in {*translate.COMPONENTS, "trainer", "params", "env"}


def in_our_words(key: str, value: Any, source: str) -> list[tuple[str, Any]]:
    """Return what one key of another template sets; one without a counterpart is a `UserError`."""
    parts = re.split("[;.]", key)
    node: Any = value
    for part in reversed(parts):
        node = {part: node}
    kind = "yaml" if parts[0].isupper() else "template"
    reading = Reading(source, kind, whole=False)
    translate.walk(reading, node, (), None)
    settle(reading)
    pairs: list[tuple[str, Any]] = []
    for name, ours in reading.values.items():
        if name in DICT_FIELDS and name.endswith("_args"):
            pairs += [(f"{name}.{argument}", part) for argument, part in ours.items()]
        else:
            pairs.append((name, ours))
    if not pairs:
        why = next((reason for reason in reading.lost.values() if reason), "see docs/moving.md")
        raise UserError(f"{source}: {key!r} has no counterpart ({why})")
    return pairs


def space_in_our_words(space: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rename the keys of a search space that are another template's, and the values of choices.

    What cannot be renamed stays as it is, to be refused where all keys are checked.
    """
    done: dict[str, Any] = {}
    for key, spec in space.items():
        try:
            renamed, ours = _renamed(key, spec, source)
        except (UserError, KeyError, TypeError):
            renamed, ours = key, spec
        if renamed in done:
            raise UserError(f"{source}: {key} and another key both set {renamed}; leave one out")
        done[renamed] = ours
    return done


def _renamed(key: str, spec: Any, source: str) -> tuple[str, Any]:
    if not is_theirs(key):
        return key, spec
    values = spec["_value"]
    if spec["_type"] != "choice":
        ((name, _),) = in_our_words(key, values[0], source)
        return name, spec
    pairs = [pair for value in values for pair in in_our_words(key, value, source)]
    names = {name for name, _ in pairs}
    if len(names) > 1 or len(pairs) != len(values):
        raise UserError(f"{source}: {key} sets several options: {', '.join(sorted(names))}")
    return pairs[0][0], {**spec, "_value": [value for _, value in pairs]}
