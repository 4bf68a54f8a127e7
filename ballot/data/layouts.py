"""What layouts have in common: finding folders by their usual names, reading CSV files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ballot.data.attributes import Attribute
from ballot.data.tables import UNKNOWN, first_few
from ballot.errors import UserError, suggest
from ballot.runs.csv_files import check_columns, read_records

# The usual names of the three sides, as folders and as values of a CSV column.
SIDES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}

# Names that columns usually have, the likeliest first.
PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "img_path",
    "image_id",
    "imageid",
    "name",
)
LABELS = ("label", "class", "target", "category", "class_name", "label_name", "y", "ans")
GROUPS = (
    "group",
    "group_id",
    "person",
    "person_id",
    "patient",
    "patient_id",
    "subject",
    "subject_id",
    "object_id",
    "lesion_id",
    "profile",
    "profile_id",
)
SPLITS = ("split", "set", "subset", "stage", "partition")

JOINT = "_"  # between the values in the name of a joint class
Values = tuple[str, ...]  # of one row: what it says in each column of the label, or ""


def side_folders(root: Path) -> dict[str, Path]:
    """Folders of `root` that are named like a side of a split, by side."""
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir()):
        side = SIDES.get(folder.name.lower())
        if side and folder.is_dir():
            if side in found:
                raise UserError(
                    f"{root}: {found[side].name} and {folder.name} are both {side} sets; keep one"
                )
            found[side] = folder
    return found


def composed(name: str) -> str:
    """Return a name in the Unicode form of Linux (NFC); macOS keeps accents apart in file names."""
    return unicodedata.normalize("NFC", name)


def sorted_classes(names: Sequence[str]) -> list[str]:
    """Sort distinct class names, whole numbers by their value."""
    distinct = set(names)
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in distinct)
    return sorted(distinct, key=(lambda name: (int(name), name)) if numbers else None)


def encode(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Number the class of each name [N]; an empty name is `UNKNOWN`."""
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[name] if name else UNKNOWN for name in names], dtype=np.int64)


def join_values(
    where: object, names: Sequence[str], rows: Sequence[Values]
) -> tuple[list[str], list[str], tuple[Attribute, ...]]:
    """Make joint classes of the values in each row.

    Returns the name of each row's class ("" where a value is missing), the names of the classes in
    the order of the attributes' own classes, and the attributes. Values that cannot be told apart
    once they are joined, and an attribute of one value, are a `UserError`.
    """
    known = [row for row in rows if all(row)]
    own = [sorted_classes(values) for values in zip(*known)]
    single = [name for name, classes in zip(names, own) if len(classes) < 2]
    if single:
        raise UserError(f"{where}: {single[0]} has one value in every row; leave that column out")
    numbers = [{value: k for k, value in enumerate(classes)} for classes in own]
    order = sorted(set(known), key=lambda row: [at[value] for at, value in zip(numbers, row)])
    joined: dict[str, Values] = {}
    for row in order:
        name = JOINT.join(row)
        if (other := joined.setdefault(name, row)) != row:
            raise UserError(f"{where}: {other} and {row} are both {name!r}; rename a value")
    attributes = tuple(
        Attribute(name, tuple(classes), tuple(at[row[k]] for row in order))
        for k, (name, classes, at) in enumerate(zip(names, own, numbers))
    )
    return [JOINT.join(row) if all(row) else "" for row in rows], list(joined), attributes


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and the rows of a CSV file, all as text."""
    header, *rows = read_records(path) or [[]]
    columns = [name.strip() for name in header]
    if not columns or not rows:
        raise UserError(f"{path}: holds no rows")
    check_columns(path, columns)
    torn = [n for n, row in enumerate(rows, 2) if len(row) != len(columns)]
    if torn:
        raise UserError(
            f"{path}: {len(torn)} lines have not {len(columns)} fields: {first_few(map(str, torn))}"
        )
    return columns, [dict(zip(columns, map(str.strip, row))) for row in rows]


def column(
    where: Path, columns: Sequence[str], key: str, given: str | None, guesses: Sequence[str]
) -> str | None:
    """Return the column that `given` names, or the likeliest one, or None."""
    if given is not None:
        if given not in columns:
            raise UserError(f"{key}: {where.name} has no column {given!r}{suggest(given, columns)}")
        return given
    lowered = {name.lower(): name for name in reversed(columns)}
    return next((lowered[guess] for guess in guesses if guess in lowered), None)


def label_columns(
    where: Path, columns: Sequence[str], given: Sequence[str] | None, *, needed: bool = True
) -> list[str]:
    """Return the columns of the label, several where it is made of attributes.

    A file that does not need them, one of test rows, may lack them.
    """
    if given is not None and (needed or set(given) <= set(columns)):
        if len(set(given)) < len(given):
            raise UserError(f"label_column: names a column twice: {first_few(given)}")
        return [name for one in given if (name := column(where, columns, "label_column", one, ()))]
    guess = None
    if given is None or len(given) == 1:
        guess = column(where, columns, "label_column", None, LABELS)
    return [] if guess is None else [guess]


def csv_files(where: Path, chosen: str | None) -> list[tuple[Path, str]]:
    """The CSV files of a data set and the side that each stands for.

    `where` is one, or the folder of one; train.csv, val.csv and test.csv belong together.
    """
    if where.is_file():
        return [(where, "train")]
    if chosen is not None:
        if not (where / chosen).is_file():
            raise UserError(f"dataset_args.file: {where / chosen} is not there")
        return [(where / chosen, "train")]
    files = sorted(where.glob("*.csv"))
    sides = {SIDES[f.stem.lower()]: f for f in files if f.stem.lower() in SIDES}
    if "train" in sides:
        return [(file, side) for side, file in sorted(sides.items(), key=lambda s: s[0] != "train")]
    named = [f for f in files if f.stem.lower() == "labels"] or files
    if len(named) != 1:
        what = first_few([f.name for f in files]) if files else "no CSV file"
        raise UserError(f"{where}: has {what}; name one with --dataset_args.file")
    return [(named[0], "train")]
