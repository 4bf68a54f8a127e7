"""Who votes: prediction files, the run folders beside them, and what those folders know."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.errors import UserError
from ballot.names import check_names, resolved
from ballot.runs.files import read_json
from ballot.runs.folder import VALIDATION, continued_of, is_validation, run_of
from ballot.values import Json
from ballot.vote.options import Refit
from ballot.wording import few, natural

# What may differ between the folds and seeds of one configuration.
OWN_TO_A_RUN = (
    "seed",
    "split_seed",
    "fold",
    "run_name",
    "out_dir",
    "resume",
    "device",
    "workers",
    "tensorboard",
    "tracker",
    "log_every",
    "log_config",
    "save_period",
)
TRIAL = re.compile(r"\w+-\d{3,}-\w+")  # a run of a search: its number there, and the trial's id


@dataclass(frozen=True)
class Member:
    """One voice: a run's CSV, or those of the folds and seeds of one configuration."""

    name: str
    files: tuple[Path, ...]
    weight: float = 1.0

    @property
    def folders(self) -> list[Path]:
        """The folders of the files' runs, as far as there are any."""
        return [run for run in map(run_of, self.files) if run.is_dir()]


def find_files(paths: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Expand patterns that no shell has expanded; leave earlier votes out, and say so."""
    files: list[Path] = []
    notes: list[str] = []
    for path in map(str, paths):
        found = [path]
        if any(mark in path for mark in "*?[") and not Path(path).exists():
            found = sorted(glob.glob(path))  # noqa: PTH207 - the pattern may be absolute
            if not found:
                raise UserError(
                    f"{path}: matches no file; run train.py or collect.py first (runs "
                    f"without test rows vote by outputs/*/{VALIDATION})"
                )
        files += map(Path, found)
    results = ("soft.csv", VALIDATION)
    own = [f for f in files if f.name in results and f.with_name("ensemble.json").exists()]
    if own:
        notes.append(f"left out: {few(map(str, own))}, an earlier vote's result")
    earlier = continued_of(files)
    if earlier:
        notes.append(f"left out: {few(map(str, earlier))}, which another member goes on from")
    left = {*own, *earlier}
    files = [f for f in files if f not in left]
    if not files:
        raise UserError("ensemble: no file to vote; give the CSVs of runs, as in outputs/*.csv")
    check_names("ensemble", list(map(str, files)))
    seen: dict[Path, Path] = {}
    for file in files:
        first = seen.setdefault(resolved(file, "leave it out"), file)
        if first is not file:
            raise UserError(f"{file}: is given twice; use --weights to weight it more")
    held_out = [file for file in files if is_validation(file)]
    if held_out and len(held_out) < len(files):  # also the two files of one run
        raise UserError(
            f"{held_out[0]}: holds validation rows, other members' files test rows; "
            "give of all runs the one, or of all the other"
        )
    return files, notes


def name_members(files: Sequence[Path], weights: Sequence[float] | None) -> list[Member]:
    """Name each file by its stem, and by its folders too where stems are alike."""
    if weights is not None:
        check_weights(weights, len(files))
    names = [run_of(file.absolute()).name for file in files]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        parts = [run_of(file.resolve()).parts[-depth:] for file in files]
        names = ["/".join(part) for part in parts]
    weights = weights or [1.0] * len(files)
    return [Member(n, (f,), float(w)) for n, f, w in zip(names, files, weights, strict=True)]


def check_weights(weights: Sequence[float], files: int) -> None:
    """Refuse weights that no vote can be made of."""
    if len(weights) != files:
        raise UserError(f"--weights: gives {len(weights)} for {files} files; give one a file")
    bad = [w for w in weights if not 0 <= w < float("inf")]
    if bad or not any(weights):
        what = f"{bad[0]} is no weight" if bad else "all are 0"
        raise UserError(f"--weights: {what}; a weight is 0 or more, and one at least above 0")


def group_folds(members: Sequence[Member]) -> list[Member]:
    """Join the folds and seeds of one configuration into one member each."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(configuration(member), []).append(member)
    joined = []
    for group in groups.values():
        files = tuple(sorted((f for m in group for f in m.files), key=lambda f: natural(str(f))))
        names = [m.name for m in group]  # of trials no start is worth anything
        shared = names[0] if all(map(TRIAL.fullmatch, names)) else common_start(names)
        name = group[0].name if len(group) == 1 else f"{shared or group[0].name} ({len(group)})"
        joined.append(Member(name, files))
    taken: dict[str, int] = {}
    for place, member in enumerate(joined):
        taken[member.name] = taken.get(member.name, 0) + 1
        if taken[member.name] > 1:
            joined[place] = Member(f"{member.name} #{taken[member.name]}", member.files)
    return joined


def common_start(names: Sequence[str]) -> str:
    """Return what all names begin with, without the joint that it ends in."""
    low, high = min(names), max(names)
    same = next((i for i, pair in enumerate(zip(low, high)) if pair[0] != pair[1]), len(low))
    return re.sub(r"[-_.+]+$", "", low[:same])


def configuration(member: Member) -> str:
    """Return what is the same for all folds and seeds: settings, else the name without them."""
    settings = settings_of(member)
    if settings is not None:
        return json.dumps(settings, sort_keys=True)
    parent = str(run_of(member.files[0]).parent)
    return f"{parent}/" + re.sub(r"[-_.]?(fold|seed)[-_=]?[0-9]+", "", member.name, flags=re.I)


def settings_of(member: Member) -> Json | None:
    """Return the settings that folds and seeds share; None where no run folder tells."""
    for folder in member.folders:
        values = read_json(folder / "config.json").get("values")
        if isinstance(values, dict):
            return {k: v for k, v in values.items() if k not in OWN_TO_A_RUN}
    return None


def refits_among(members: Sequence[Member]) -> list[Refit]:
    """Return the finished runs on all rows that repeat another member's configuration."""
    settings = [settings_of(member) or {} for member in members]
    on_all_rows = [each.get("all_rows", False) for each in settings]
    keys = [json.dumps(each | {"all_rows": False}, sort_keys=True) for each in settings]
    repeated = {key: m.name for m, key, all_rows in zip(members, keys, on_all_rows) if not all_rows}
    return [
        Refit(member.files[0], repeated[key])
        for member, key, all_rows in zip(members, keys, on_all_rows)
        if all_rows and key in repeated and status_of(member) == "done"
    ]


def status_of(member: Member) -> str | None:
    """Return how the runs ended, the worst of them first; None where nobody wrote it."""
    found = {read_json(folder / "result.json").get("status") for folder in member.folders}
    for status in ("failed", "running", "stopped", "done"):
        if status in found:
            return status
    return None


def _texts(value: object) -> list[str]:
    """Return a list of JSON as texts; what is no list is an empty one."""
    return [str(item) for item in value] if isinstance(value, list) else []
