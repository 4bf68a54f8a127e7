"""Rows that take no part in training: a list of ids, such as those whose labels are doubted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ballot.data.tables import UNKNOWN, Table, first_few
from ballot.errors import UserError, suggest
from ballot.runs.csv_files import check_columns, read_records

Pairs = list[tuple[np.ndarray, np.ndarray]]  # rows of training and validation, for each fold
EXPECTED = "give a CSV with a column id, or a text with one id a line"
EXCLUDED = "excluded"  # the split of such a row


def read_ids(path: Path) -> list[str]:
    """Read ids from a CSV with a column `id`, or from a text with one id a line."""
    if not path.is_file():
        raise UserError(f"exclude: {path} is no file; {EXPECTED}")
    records = read_records(path)
    header = records[0] if records else []
    names = [name.strip().lower() for name in header]
    if "id" in names:
        check_columns(path, header)
        place = names.index("id")
        ids = [row[place] for row in records[1:] if len(row) > place]
    else:  # a comma is part of a name here
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        ids = [line.rstrip("\r") for line in lines]
    ids = list(dict.fromkeys(name for name in ids if name.strip()))
    if not ids:
        raise UserError(f"exclude: {path} lists no id; {EXPECTED}")
    return ids


def mark_excluded(table: Table, path: Path) -> Table:
    """Take the labels and the sides of the rows that the file `path` lists; see `read_ids`.

    Training rows and validation rows alike: a label that is doubted teaches nothing, and scores
    nothing. Ids that are not in the data, and rows of the test set, are a `UserError`.
    """
    ids, place = read_ids(path), {name: row for row, name in enumerate(table.ids)}
    unknown = [name for name in ids if name not in place]
    if unknown:
        raise UserError(
            f"exclude: {len(unknown)} of the {len(ids)} ids in {path} are not in {table.name}, as "
            f"{unknown[0]!r}{suggest(unknown[0], table.ids[:1000])}"
        )
    rows = [place[name] for name in ids]
    tested = [table.ids[row] for row in rows if table.splits[row] == "test"]
    if tested:
        raise UserError(
            f"exclude: {path} lists {len(tested)} test rows ({first_few(tested, 2)}), "
            "which need an answer; leave them out"
        )
    labels, splits = table.labels.copy(), list(table.splits)
    labels[rows] = UNKNOWN
    for row in rows:
        splits[row] = EXCLUDED
    return replace(table, labels=labels, splits=splits)


def without_excluded(table: Table, pairs: Pairs) -> Pairs:
    """Take excluded rows out of pairs of training and validation rows.

    The split is made before: runs with other exclusions hold out the same rows but for these.
    """
    kept = np.array([split != EXCLUDED for split in table.splits])
    left = [(train[kept[train]], val[kept[val]]) for train, val in pairs]
    if not all(len(side) for pair in left for side in pair):
        raise UserError("exclude: no row is left to train on, or none to validate on")
    return left
