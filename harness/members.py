"""Who votes: prediction files, the run folders beside them, and what those folders know."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.ballots import Ballot, few, natural, read_ballot, read_header, short
from harness.errors import UserError, suggest

# What may differ between the folds and seeds of one configuration.
OWN_TO_A_RUN = ("seed", "split_seed", "fold", "run_name", "out_dir", "resume", "device", "workers",
                "tensorboard", "tracker", "log_every", "log_config", "save_period")  # fmt: skip
VALIDATION = "val.csv"  # in a run's folder: what a run votes with where the data have no test rows
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


def is_validation(file: Path) -> bool:
    """Tell whether these are a run's validation rows, and not the ballot of a run called val."""
    return file.name == VALIDATION and not file.with_suffix("").is_dir()


def run_of(file: Path) -> Path:
    """Return the folder of the run whose predictions these are, whether it is there or not."""
    return file.parent if is_validation(file) else file.with_suffix("")


def ballots_of(runs: Iterable[Path]) -> list[Path]:
    """Return what runs vote with: predictions of test rows or, where none has any, validation rows.

    Runs without them have no part in it.
    """
    runs = list(runs)
    tested = [run.with_name(f"{run.name}.csv") for run in runs]
    return [file for file in tested if file.is_file()] or [
        file for run in runs if (file := run / VALIDATION).is_file()
    ]


def read_member(file: Path) -> Ballot:
    """Read a member's file."""
    return read_ballot(file, labelled=is_validation(file))


def find_files(paths: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Expand patterns that no shell has expanded; leave earlier votes out, and say so."""
    files: list[Path] = []
    notes: list[str] = []
    for path in map(str, paths):
        found = [path]
        if any(mark in path for mark in "*?[") and not Path(path).exists():
            found = sorted(glob.glob(path))  # noqa: PTH207 - the pattern may be absolute
            if not found:
                raise UserError(f"{path}: matches no file; run train.py or collect.py first (runs "
                                f"without test rows vote by outputs/*/{VALIDATION})")  # fmt: skip
        files += map(Path, found)
    own = [f for f in files if f.name == "soft.csv" and f.with_name("ensemble.json").exists()]
    if own:
        notes.append(f"left out: {few(map(str, own))}, an earlier vote's result")
    left = set(own)
    files = [f for f in files if f not in left]
    if not files:
        raise UserError("ensemble: no file to vote; give the CSVs of runs, as in outputs/*.csv")
    seen: dict[Path, Path] = {}
    for file in files:
        first = seen.setdefault(file.resolve(), file)
        if first is not file:
            raise UserError(f"{file}: is given twice; --weights gives a member more say")
    held_out = [file for file in files if is_validation(file)]
    if held_out and len(held_out) < len(files):  # also the two files of one run
        raise UserError(f"{held_out[0]}: holds validation rows, other members' files test rows; "
                        "give of all runs the one, or of all the other")  # fmt: skip
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
    for folder in member.folders:
        values = read_json(folder / "config.json").get("values")
        if isinstance(values, dict):
            kept = {k: v for k, v in values.items() if k not in OWN_TO_A_RUN}
            return json.dumps(kept, sort_keys=True)
    parent = str(run_of(member.files[0]).parent)
    return f"{parent}/" + re.sub(r"[-_.]?(fold|seed)[-_=]?[0-9]+", "", member.name, flags=re.I)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one, a damaged one a `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); vote without this run") from None
    return value if isinstance(value, dict) else {}


def status_of(member: Member) -> str | None:
    """Return how the runs ended, the worst of them first; None where nobody wrote it."""
    found = {read_json(folder / "result.json").get("status") for folder in member.folders}
    for status in ("failed", "running", "stopped", "done"):
        if status in found:
            return status
    return None


@dataclass(frozen=True)
class Submission:
    """How the data want their answer: the columns, and what is written for each class."""

    columns: tuple[str, str]
    words: dict[str, str]
    order: list[str] | None = None  # ids, where a run's own submission has them in its order


def find_submission(members: Sequence[Member], classes: list[str]) -> tuple[Submission, list[str]]:
    """Take columns, words and order from the first run that has them; say where runs differ."""
    found: Submission | None = None
    for folder in (f for member in members for f in member.folders):
        result = read_json(folder / "result.json")
        wanted = result.get("submission") or {}
        names = result.get("classes") or classes
        columns, answers = list(wanted.get("columns") or ()), list(wanted.get("answers") or ())
        if len(columns) != 2 or len(answers) != len(classes) or sorted(names) != sorted(classes):
            continue
        words = {str(n): str(a) for n, a in zip(names, answers, strict=True)}
        this = Submission((str(columns[0]), str(columns[1])), words)
        if found is None:
            found = Submission(this.columns, words, _submitted_ids(folder / "submission.csv"))
        elif (this.columns, this.words) != (found.columns, found.words):
            return found, [
                f"submission: {folder} words its answers otherwise; the first run's hold"
            ]
    return found or Submission(("id", "label"), {name: name for name in classes}), []


def _submitted_ids(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[0] for row in csv.reader(file) if row][1:]


@dataclass(frozen=True)
class Knowledge:
    """What `split.csv` tells about rows: the group of each, and labels of test rows."""

    groups: dict[str, str]
    truth: dict[str, str]


def read_splits(members: Sequence[Member]) -> Knowledge:
    """Read every different `split.csv` beside the members once."""
    groups: dict[str, str] = {}
    truth: dict[str, str] = {}
    seen: set[bytes] = set()  # digests: whole files of ten thousand runs would not fit
    for path in (folder / "split.csv" for member in members for folder in member.folders):
        if not path.is_file():
            continue
        digest = hashlib.blake2b(path.read_bytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        header = read_header(path)
        for column in ("id", "label", "split"):
            if column not in header:
                raise UserError(f"{path}: has no column {column!r}; expected id,label,split,group")
        for row in _rows(path):
            if row.get("group"):
                groups[row["id"]] = row["group"]
            name, label = row["id"], row["label"]
            if row["split"] != "test" or not label:
                continue
            if truth.setdefault(name, label) != label:
                raise UserError(
                    f"{path}: calls {short(name)} {short(label)} and another run "
                    f"{short(truth[name])}; vote over runs of the same data"
                )
    return Knowledge(groups, truth)


def _rows(path: Path) -> Iterable[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, restval="")
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no CSV ({error}); expected id,label,...") from None


def read_truth(path: Path, classes: Sequence[str], words: dict[str, str]) -> dict[str, str]:
    """Read true classes by id from a CSV of two columns, in class names or the answers' words."""
    header = read_header(path)
    names = [name.lower() for name in header]
    key = names.index("id") if "id" in names else 0
    rest = [i for i in range(len(header)) if i != key]
    known = [i for i in rest if names[i] in ("label", "ans", "answer", "class", "target")]
    if len(known or rest) != 1:
        raise UserError(f"{path}: cannot tell which column is the truth; expected id,label")
    column = (known or rest)[0]
    truth: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in list(csv.reader(file))[1:]:
            if len(row) <= max(key, column) or not row[column]:
                continue
            if truth.setdefault(row[key], row[column]) != row[column]:
                raise UserError(f"{path}: id {short(row[key])} has two different labels")
    if not set(truth.values()) <= set(classes):
        back = {word: name for name, word in words.items()}
        unknown = sorted(set(truth.values()) - set(back))
        if unknown:
            raise UserError(
                f"{path}: the label {short(unknown[0])} is no class{suggest(unknown[0], classes)}"
            )
        truth = {i: back[word] for i, word in truth.items()}
    return truth
