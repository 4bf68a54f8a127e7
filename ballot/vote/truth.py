"""Where the true labels of a vote's rows are known."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from ballot.errors import UserError, suggest
from ballot.runs.csv_files import LONGEST_FIELD, check_columns, read_records
from ballot.runs.files import read_json
from ballot.vote.ballots import read_header
from ballot.vote.members import Member, _texts
from ballot.wording import short


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
        wanted = result.get("submission")
        wanted = wanted if isinstance(wanted, dict) else {}
        names = _texts(result.get("classes")) or classes
        columns, answers = _texts(wanted.get("columns")), _texts(wanted.get("answers"))
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
    return [row[0] for row in read_records(path)][1:]


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
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, restval="")
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no CSV ({error}); expected id,label,...") from None


def read_truth(path: Path, classes: Sequence[str], words: dict[str, str]) -> dict[str, str]:
    """Read true classes by id from a CSV of two columns, in class names or the answers' words."""
    header = read_header(path)
    check_columns(path, header)
    names = [name.lower() for name in header]
    key = names.index("id") if "id" in names else 0
    rest = [i for i in range(len(header)) if i != key]
    known = [i for i in rest if names[i] in ("label", "ans", "answer", "class", "target")]
    if len(known or rest) != 1:
        raise UserError(f"{path}: cannot tell which column is the truth; expected id,label")
    column = (known or rest)[0]
    truth: dict[str, str] = {}
    for row in read_records(path)[1:]:
        if len(row) <= max(key, column) or not row[column]:
            continue
        if truth.setdefault(row[key], row[column]) != row[column]:
            raise UserError(f"{path}: id {short(row[key])} has two different labels")
    forms = {normalize("NFC", name): name for name in classes}
    truth = {name: forms.get(normalize("NFC", label), label) for name, label in truth.items()}
    if not set(truth.values()) <= set(classes):
        back = {word: name for name, word in words.items()}
        unknown = sorted(set(truth.values()) - set(back))
        if unknown:
            raise UserError(
                f"{path}: the label {short(unknown[0])} is no class{suggest(unknown[0], classes)}"
            )
        truth = {i: back[word] for i, word in truth.items()}
    return truth
