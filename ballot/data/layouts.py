"""What layouts have in common: finding folders by their usual names, reading CSV files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
