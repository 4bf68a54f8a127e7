"""Transforms as other templates write them, by their names in `torchvision.transforms.v2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ballot.config.templates.vocabulary import FIRST_ARGUMENT, HALF
from ballot.errors import UserError
from ballot.values import Json, Values


def pipeline(spec: Any, where: str) -> Json:
    """Turn transforms, as a list or an object, into `{name: arguments}` in order."""
    if isinstance(spec, Mapping):
        steps: Sequence[Any] = [{name: args} for name, args in spec.items()]
    elif isinstance(spec, (list, tuple)):
        steps = spec
    else:
        raise UserError(f"{where}: is {spec!r}; transforms are a list or an object")
    done: Json = {}
    for step in steps:
        name, args = _step(step, where)
        if name in done:
            raise UserError(f"{where}: {name} stands there twice; a pipeline names each once")
        done[name] = args
    return done


def _step(step: object, where: str) -> tuple[str, Json | None]:
    if isinstance(step, str):
        return _camel(step), dict(HALF) if step == "normalize" else None
    if (
        isinstance(step, Mapping)
        and len(step) == 1
        and not {"type", "name"} & set(map(str.lower, step))
    ):
        ((name, args),) = step.items()
        name = _camel(name)
        if args is None or isinstance(args, Mapping):
            return name, _lowered(args)
        return name, {FIRST_ARGUMENT.get(name, "size"): args}
    if isinstance(step, Mapping):
        rest = _lowered(step) or {}
        for word in ("type", "name"):
            if isinstance(rest.get(word), str):
                name = _camel(rest.pop(word))
                return name, {**(_lowered(rest.pop("args", None)) or {}), **rest} or None
    raise UserError(f'{where}: {step!r} has no name; as in {{"type": "Resize", "size": 64}}')


def _camel(name: str) -> str:
    """Return torchvision's name of a transform that is written in small letters: `to_tensor`."""
    if name != name.lower():
        return name
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _lowered(args: Values | None) -> Json | None:
    return {str(key).lower(): value for key, value in args.items()} if args else None
