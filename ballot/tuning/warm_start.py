"""What is known of a search before its first trial: the script's own options, earlier runs."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ballot.config.schema import COMPONENTS, OWN_FIELDS, Config
from ballot.config.trial_command import command_problems, parse_command
from ballot.errors import UserError
from ballot.runs.folder import read_config, read_result
from ballot.training.options import read_options

log = logging.getLogger("nni.ballot.prior")


def experiment_of(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of the search whose tuner this process is, or nothing."""
    if "--exp_params" not in argv[:-1]:
        return {}
    return json.loads(base64.b64decode(argv[argv.index("--exp_params") + 1]))


def config_of(experiment: Mapping[str, Any]) -> Config | None:
    """Return what a trial of a search does without a tuner; None where its script is not ours."""
    text = experiment.get("trialCommand") or ""
    code = Path(experiment.get("trialCodeDirectory") or ".")
    if not text or command_problems(text, ""):
        return None
    command = parse_command(text, code)
    return read_options(command, code, "")[0].config if command.script >= 0 else None


def defaults_of(experiment: Mapping[str, Any], space: Mapping[tuple, Any]) -> dict[tuple, float]:
    """Return the options of the trial command, moved into the search space.

    What has no default, and a name that is none of the choices, is missing.
    """
    config = config_of(experiment)
    return {} if config is None else point_of(space, asdict(config), clip=True)


def earlier_runs(
    folders: Sequence[Path], space: Mapping[tuple, Any], mode: str
) -> Iterator[tuple[dict[tuple, float], str, float | None]]:
    """Yield the runs below `folders` that lie in the space: the point, how it ended, its score.

    Left out are runs that have not ended, those of another aim (`mode` is `min` or `max`), and
    those that lack a value, or have one outside of the space.
    """
    for folder in folders:
        for file in sorted({*folder.glob("result.json"), *folder.glob("*/result.json")}):
            result = read_result(file.parent)
            state, score = result.get("status"), result.get("score")
            if state not in ("done", "stopped", "failed") or result.get("mode", mode) != mode:
                continue
            try:
                point = point_of(space, read_config(file.parent))
            except UserError as error:
                log.warning("%s", error)
                continue
            whole = all(key in point for key, spec in space.items() if spec.is_activated_in(point))
            if whole and (score is not None or state == "failed"):
                yield point, state, score


class Point(dict):
    """A point of NNI's formatted space; a key that is missing takes no choice."""

    def __missing__(self, key: tuple) -> None:
        return None


def point_of(space: Mapping[tuple, Any], config: Mapping[str, Any], *, clip: bool = False) -> Point:
    """Return where the values of a config lie in NNI's formatted space; what does not is missing.

    `clip` moves a number that lies outside of its range to the nearest end.
    """
    point = Point()
    for key, spec in space.items():
        if spec.is_activated_in(point):
            place = place_of(spec, _look_up(key, config), clip=clip)
            if place is not None:
                point[key] = place
    return point


def _look_up(key: tuple, config: Mapping[str, Any]) -> Any:
    head, *inner = key
    if inner:  # (component, number of the choice, option)
        name = inner[-1]
        return (
            config.get(name) if name in OWN_FIELDS.get(head, ()) else _argument(head, name, config)
        )
    head, _, rest = head.replace("-", "_").partition(".")
    return _argument(head, rest, config) if rest else config.get(head)


def _argument(head: str, name: str, config: Mapping[str, Any]) -> Any:
    return (config.get(f"{head}_args" if head in COMPONENTS else head) or {}).get(name)


def place_of(spec: Any, value: Any, *, clip: bool = False) -> float | None:
    """Return a value in NNI's internal form, or None where it lies outside of its range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if spec.type == "choice":
        return _choice(spec.values, value, clip and number)
    if number and spec.log_distributed and value <= 0 and spec.q:
        value = spec.q / 4  # was rounded down to nothing
    if not number or (spec.log_distributed and value <= 0):
        return None
    low, high = (-math.inf, math.inf) if "normal" in spec.type else spec.values[:2]
    if spec.categorical:
        low, high = math.ceil(low), math.ceil(low) + spec.size - 1
    if clip:
        value = min(max(value, low), high)
    if not low <= value <= high and not any(math.isclose(value, end) for end in (low, high)):
        return None
    if spec.categorical:
        return round(value) - low
    return math.log(value) if spec.log_distributed else value


def _choice(values: Sequence[Any], value: Any, nearest: bool) -> int | None:
    names = [_name_of(v) for v in values]
    if _name_of(value) in names:
        return names.index(_name_of(value))
    numbers = [v for v in names if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if not nearest or not numbers:
        return None
    return names.index(min(numbers, key=lambda v: abs(v - value)))


def _name_of(value: Any) -> Any:
    return value["_name"] if isinstance(value, Mapping) and "_name" in value else value
