"""Tuners and assessors that a configuration names by their class: this project's own, and others.

Nothing here loads NNI before one of ours is made.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ballot.errors import suggest
from ballot.problems import Problem
from ballot.runs.folder import read_result
from ballot.values import Values

TUNER = "ballot.engines.nni.tuner.Tuner"
ASSESSOR = "ballot.engines.nni.assessor.Assessor"
OURS = {TUNER: "tuners", ASSESSOR: "assessors"}
RENAMED = {"harness.tpe.Tuner": TUNER, "harness.halving.Assessor": ASSESSOR}


def name_of(algorithm: Any) -> str:
    """Return what a configuration calls a tuner or an assessor."""
    return algorithm.name or getattr(algorithm, "class_name", None) or ""


def is_ours(algorithm: Any) -> bool:
    """Tell whether a tuner or an assessor is one of this project's."""
    return name_of(algorithm) in OURS


def make(algorithm: Any) -> Any:
    """Return the object that NNI's process would make; bad arguments raise as they would there."""
    module, _, name = algorithm.class_name.rpartition(".")
    return getattr(importlib.import_module(module), name)(**(algorithm.class_args or {}))


def class_problems(kind: str, algorithm: Any, path: Path) -> list[Problem]:
    """Return why NNI's process would not find the class of a tuner or an assessor."""
    whose, name = kind.removesuffix("s"), algorithm.class_name
    code = Path(path.parent, Path(algorithm.code_directory or ".").expanduser())  # as NNI does
    module, _, last = name.rpartition(".")
    if not module or not last:
        what = f"the {whose}'s className {name!r} names no module"
        return [Problem(str(path), what, "as in my_tuner.MyTuner, with its codeDirectory")]
    if name in RENAMED:
        what = f"the {whose} {name} has another name now"
        return [Problem(str(path), what, f"write className: {RENAMED[name]}")]
    if module.split(".")[0] != "ballot":
        if importlib.machinery.PathFinder.find_spec(module.split(".")[0], [str(code), *sys.path]):
            return []
        what = f"the {whose} {name}: there is no module {module.split('.')[0]!r} in {code}"
        return [Problem(str(path), what, "correct className or codeDirectory")]
    if OURS.get(name) != kind:
        hint = suggest(name, [own for own, its in OURS.items() if its == kind])
        return [Problem(str(path), f"there is no {whose} {name!r}", hint.removeprefix("; "))]
    if not Path(code, *module.split(".")).with_suffix(".py").is_file():
        what = f"the {whose} {name} is not in codeDirectory {code}"
        return [Problem(str(path), what, "name the project's folder")]
    return []


def add_warm_start(config: Any, given: Sequence[str], code: Path, path: Path) -> list[Problem]:
    """Give the tuner the earlier runs that the command line names, and check all that it has."""
    tuner = config.tuner
    if tuner is None or name_of(tuner) != TUNER:
        if not given:
            return []
        what = f"the tuner {name_of(tuner) if tuner else 'of this search'} takes no earlier runs"
        remedy = f"set tuner: {{className: {TUNER}, codeDirectory: ., classArgs: ...}}"
        return [Problem("command line", f"--warm_start: {what}", remedy)]
    where = "command line" if given else str(path)
    if given:
        absolute = [str(Path(folder).expanduser().absolute()) for folder in given]
        tuner.class_args = {**(tuner.class_args or {}), "warm_start": absolute}
    return warm_start_problems(tuner.class_args or {}, code, where)


def warm_start_problems(arguments: Values, code: Path, where: str) -> list[Problem]:
    """Return the folders of earlier runs that are not there, or hold no run that has ended."""
    folders, found = arguments.get("warm_start") or [], []
    for folder in [folders] if isinstance(folders, str) else folders:
        there = code / Path(str(folder)).expanduser()
        if not there.is_dir():
            found.append(Problem(where, f"warm_start: {folder} is not there"))
            continue
        runs = [file.parent for file in (*there.glob("result.json"), *there.glob("*/result.json"))]
        if not any(read_result(run).get("status") in ("done", "stopped", "failed") for run in runs):
            what = f"warm_start: {folder} holds no run that has ended"
            found.append(Problem(where, what, "name a run's folder, or one of several"))
    return found
