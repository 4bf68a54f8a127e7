"""The layers that values come from, laid over each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ballot.config.schema import COMPONENTS, DICT_FIELDS, OWN_FIELDS, Config, check_key, convert
from ballot.config.templates.keys import in_our_words, is_theirs
from ballot.errors import UserError
from ballot.values import Json, Layer

# What else says how much is held out: a layer that says one forgets the other one below it.
RIVALS = {"val_ratio": "val_rows"}

# What the machines of image competitions say by their environment (Amazon SageMaker's names);
# SM_CHANNEL_TRAIN and SM_CHANNEL_EVAL are read by the data set that has two folders.
ENVIRONMENT = {"SM_OUTPUT_DATA_DIR": "out_dir", "SM_MODEL_DIR": "model_dir"}


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Return the defaults that a competition's machine sets in its environment."""
    values = {key: environ[name] for name, key in ENVIRONMENT.items() if environ.get(name)}
    return Layer("environment", values)


def flatten(layer: Layer) -> list[tuple[str, object]]:
    """Turn nested components into `(key, value)` pairs; dotted keys go to their arguments."""
    pairs: list[tuple[str, object]] = []
    for key, value in layer.values.items():
        if is_theirs(str(key)):
            pairs += in_our_words(str(key), value, layer.name)
            continue
        head, _, rest = str(key).replace("-", "_").partition(".")
        if rest:
            pairs.append((_dotted(head, rest, layer.name), value))
        elif head in COMPONENTS and isinstance(value, Mapping):
            pairs += _component(head, value, layer.name)
        elif head == "recipe" and isinstance(value, Mapping):  # a choice of whole configurations
            pairs.append((head, value.get("_name")))
            inner = {k: v for k, v in value.items() if k != "_name"}
            pairs += flatten(Layer(layer.name, inner))
        else:
            pairs.append((check_key(key, layer.name), value))
    return pairs


def _dotted(head: str, rest: str, source: str) -> str:
    if head in COMPONENTS:
        head = f"{head}_args"
    if check_key(head, source) not in DICT_FIELDS:
        raise UserError(f"{source}: {head!r} has no arguments, so {head}.{rest} cannot be set")
    return f"{head}.{rest}"


def _component(key: str, value: Mapping[str, object], source: str) -> list[tuple[str, object]]:
    """`{"type": "Adam", "args": {"lr": 0.1}}`, and NNI's `{"_name": "Adam", "lr": 0.1}`."""
    rest = dict(value)
    names = [rest.pop(word) for word in ("_name", "type", "name") if word in rest]
    if len(names) != 1 or not isinstance(names[0], str):
        raise UserError(
            f'{source}: {key} needs exactly one name, as in {{"type": "...", "args": {{...}}}}'
        )
    inner = rest.pop("args", None) or {}
    if not isinstance(inner, Mapping):
        raise UserError(
            f"{source}: the args of {key} are {inner!r}; use an object, as in {{'name': value}}"
        )
    args = {**inner, **rest}
    own = OWN_FIELDS.get(key, ())
    pairs = [(key, names[0])]
    return pairs + [(k if k in own else f"{key}_args.{k}", v) for k, v in args.items()]


def merge(layers: Iterable[Layer]) -> tuple[Config, dict[str, str]]:
    """Lay `layers` over the defaults, the later over the earlier.

    Returns the `Config` and the origin of every value by key; a dotted key adds to the arguments
    of the layer below, and naming another component forgets the old one's arguments.
    """
    values = dataclasses.asdict(Config())
    origin = dict.fromkeys(values, "default")
    for layer in layers:
        # Names go first: in any order, {"optimizer": "SGD", "optimizer.momentum": 0.9} is the same.
        for key, value in sorted(flatten(layer), key=lambda pair: pair[0] not in COMPONENTS):
            head, _, rest = key.partition(".")
            if rest:
                values[head] = {**values[head], rest: value}
                origin[key] = layer.name
                continue
            value = convert(head, value, layer.name)
            if head in COMPONENTS and value != values[head]:
                _forget(f"{head}_args", values, origin)
            if head in DICT_FIELDS:
                _forget(head, values, origin)
            if head in RIVALS:
                values[RIVALS[head]] = None
            values[head] = value
            origin[head] = layer.name
    return Config(**values), origin


def _forget(key: str, values: Json, origin: dict[str, str]) -> None:
    values[key] = {}
    for old in [k for k in origin if k.startswith(f"{key}.")]:
        del origin[old]
