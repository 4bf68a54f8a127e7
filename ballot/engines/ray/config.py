"""The configuration of a search on Ray: the keys of config_local.yml, and what a trial is given.

trainingService: {platform: ray, address: auto, cpus: 2, gpus: 0.5, memory: 4GiB}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballot.config.parsing import parse_json, parse_yaml
from ballot.config.templates.keys import space_in_our_words
from ballot.engines.interface import Outline
from ballot.errors import UserError, suggest
from ballot.names import resolved
from ballot.problems import Problem, as_problem
from ballot.values import Json, Values

PLATFORM = "ray"
SERVICE = "trainingService"
KEYS = (
    "experimentName",
    "searchSpaceFile",
    "searchSpace",
    "trialCommand",
    "trialCodeDirectory",
    "maxTrialNumber",
    "maxExperimentDuration",
    "trialConcurrency",
    "tuner",
    "assessor",
    SERVICE,
)
RESOURCES = ("platform", "address", "cpus", "gpus", "memory")
TUNER_ARGS = ("optimize_mode", "seed", "max_trials", "defaults", "warm_start", "tpe_args", "first")
ASSESSOR_ARGS = ("optimize_mode", "start_step", "reduction_factor", "min_trials")
NAMES = {"tuner": "TPE", "assessor": "ASHA"}
CLASSES = {"tuner": "Tuner", "assessor": "Assessor"}  # as other engines' files name the same ones
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Resources:
    """Where the trials run, and what each of them is given."""

    address: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None  # bytes

    @property
    def words(self) -> str:
        """What a trial asks for."""
        words = [f"{self.cpus:g} CPUs"]
        words += [f"{self.gpus:g} GPUs"] if self.gpus else []
        words += [f"{self.memory / 2**30:.1f} GiB of memory"] if self.memory else []
        return ", ".join(words)


@dataclass
class Wanted:
    """What a file says beside its outline; a problem for whatever it does not say well."""

    resources: Resources = Resources()
    max_trials: int | None = None
    duration: str | None = None
    arguments: dict[str, Json] = field(default_factory=dict)  # of the tuner, and what stops trials


def read_content(path: Path) -> Json:
    """Read the file; what is no configuration at all is a `UserError`."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no configuration of a search; see examples/ray/config.yml")
    return content


def is_for_ray(path: Path) -> bool:
    """Whether a configuration names Ray; one that cannot be read is left to who reads it."""
    try:
        service = read_content(path).get(SERVICE)
    except UserError:
        return False
    return isinstance(service, Mapping) and service.get("platform") == PLATFORM


def outline(content: Values, path: Path) -> tuple[Outline, list[Problem]]:
    """Return what the file says, and what is missing or cannot be read."""
    where = str(path)
    problems = _unknown(content, KEYS, where)
    command = content.get("trialCommand")
    if not isinstance(command, str) or not command.strip():
        problems.append(Problem(where, "has no trialCommand", "as in python3 train.py"))
        command = ""
    code = Path(path.parent, Path(str(content.get("trialCodeDirectory") or ".")).expanduser())
    code = resolved(code, "set trialCodeDirectory")
    if not code.is_dir():
        problems.append(Problem(where, f"trial code directory {code} is not there"))
    space, source, more = _space(content, path)
    concurrency = content.get("trialConcurrency", 1)
    if not _is_count(concurrency):
        problems.append(_wrong(where, "trialConcurrency", concurrency, "a whole number from 1 on"))
        concurrency = 1
    found = Outline(2, content, PLATFORM, command, code, concurrency, space, source)
    return found, problems + more


def wanted(content: Values, path: Path) -> tuple[Wanted, list[Problem]]:
    """Read all that the outline does not hold."""
    where, found = str(path), Wanted()
    resources, problems = _resources(content.get(SERVICE), where)
    found.resources = resources
    most = content.get("maxTrialNumber")
    if most is not None and not _is_count(most):
        problems.append(_wrong(where, "maxTrialNumber", most, "a whole number from 1 on"))
    elif isinstance(most, int):
        found.max_trials = most
    duration = content.get("maxExperimentDuration")
    found.duration = None if duration is None else str(duration)
    for kind, names in (("tuner", TUNER_ARGS), ("assessor", ASSESSOR_ARGS)):
        arguments, more = _algorithm(kind, content.get(kind), names, where)
        problems += more
        if arguments is not None:
            found.arguments[kind] = arguments
    if content.get("tuner") is None:
        problems.append(Problem(where, "names no tuner", "set tuner: {name: TPE}"))
    return found, problems


def _unknown(content: Values, names: tuple[str, ...], where: str) -> list[Problem]:
    return [
        Problem(where, f"there is no {key!r}", suggest(str(key), names).removeprefix("; "))
        for key in content
        if key not in names
    ]


def _wrong(where: str, key: str, value: object, right: str) -> Problem:
    return Problem(where, f"{key} is {value!r}", f"give {right}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _resources(service: object, where: str) -> tuple[Resources, list[Problem]]:
    """Read what a trial is given; a GPU is shared in parts, several are whole ones."""
    if not isinstance(service, Mapping):
        return Resources(), [Problem(where, f"{SERVICE} is no object", "{platform: ray, ...}")]
    problems = _unknown(service, RESOURCES, f"{where}: {SERVICE}")
    given: dict[str, Any] = {}
    for key in ("cpus", "gpus"):
        value = service.get(key)
        if value is None:
            continue
        whole = _is_share(value) and (value < 1 or float(value).is_integer())
        if not _is_share(value) or (key == "gpus" and not whole):
            right = "a number from 0 on" + "; above 1 a whole one" * (key == "gpus")
            problems.append(_wrong(f"{where}: {SERVICE}", key, value, right))
        else:
            given[key] = float(value)
    if (memory := service.get("memory")) is not None:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b|b)?", str(memory).strip(), re.IGNORECASE)
        if found is None:
            problems.append(_wrong(f"{where}: {SERVICE}", "memory", memory, "a size, as in 4GiB"))
        else:
            given["memory"] = int(float(found[1]) * UNITS[(found[2] or "B").upper()])
    if (address := service.get("address")) is not None:
        given["address"] = str(address)
        if given["address"].startswith("ray://"):
            what = f"address {address!r} is that of a Ray client, which no results come home to"
            remedy = "run search.py on a node of the cluster, with address: auto"
            problems.append(Problem(f"{where}: {SERVICE}", what, remedy))
    return Resources(**given), problems


def _algorithm(
    kind: str, given: object, names: tuple[str, ...], where: str
) -> tuple[Json | None, list[Problem]]:
    """Return the arguments of the tuner or of what stops trials; None where there is none."""
    if given is None:
        return None, []
    known = given if isinstance(given, Mapping) else {}
    name = str(known.get("name") or known.get("className") or "")
    theirs = name.startswith("ballot.engines.") and name.endswith(f".{CLASSES[kind]}")
    if name != NAMES[kind] and not theirs:
        what = f"there is no {kind} {name or given!r} on Ray"
        return None, [Problem(where, what, f"use {kind}: {{name: {NAMES[kind]}}}")]
    problems = _unknown(known, ("name", "className", "codeDirectory", "classArgs"), where)
    arguments = known.get("classArgs") or {}
    problems += _unknown(arguments, names, f"{where}: {kind}")
    mode = arguments.get("optimize_mode", "maximize")
    if mode not in ("maximize", "minimize"):
        problems.append(_wrong(f"{where}: {kind}", "optimize_mode", mode, "maximize or minimize"))
    return {key: value for key, value in arguments.items() if key in names}, problems


def _space(content: Values, path: Path) -> tuple[Json, str, list[Problem]]:
    space, file = content.get("searchSpace"), content.get("searchSpaceFile")
    source = path if file is None else Path(path.parent, Path(str(file)).expanduser())
    if space is None and file is None:
        what, remedy = "names no search space", "set searchSpaceFile: search_space.json"
        return {}, str(source), [Problem(str(path), what, remedy)]
    try:
        if file is not None:
            text = source.read_text(encoding="utf-8")
            is_yaml = source.suffix in (".yml", ".yaml")
            space = parse_yaml(text, source) if is_yaml else parse_json(text, source)
        if not isinstance(space, dict) or not space:
            what = "holds no search space"
            remedy = "it is an object with a key an option"
            return {}, str(source), [Problem(str(source), what, remedy)]
        return space_in_our_words(space, str(source)), str(source), []
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        return {}, str(source), [Problem(str(source), f"cannot be read ({reason})")]
    except UserError as error:
        return {}, str(source), [as_problem(error)]
