"""The file `results.csv`: a row for each run, with text quoted and numbers not."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ballot.errors import UserError
from ballot.runs.files import replacing, stamp
from ballot.values import Json, Values

FACTS = ("run", "status", "reason", "score", "epochs", "seconds", "machine", "device")


class Lines:
    """A table that is written again and again, of which only what has changed is made anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, ...] | None = None  # of the file as it was left here
        self._others: list[dict[str, str]] = []
        self._columns: list[str] = []
        self._lines: dict[int, tuple[Values, str]] = {}  # a row and its line, by id()

    def others(self, prefix: str) -> list[dict[str, str]]:
        """Return the rows of runs that do not begin so; read only where the file is another one."""
        if self._stamp is None or stamp(self.path) != self._stamp:
            self._others = [
                row for row in read_table(self.path) if not row["run"].startswith(prefix)
            ]
        return self._others

    def write(self, columns: list[str], rows: Sequence[Values]) -> None:
        """Write the table; a row that is the same object as before is the same line."""
        if columns != self._columns:
            self._columns, self._lines = columns, {}
        before, self._lines = self._lines, {}
        for row in rows:
            self._lines[id(row)] = before.get(id(row)) or (row, _line(columns, row))
        with replacing(self.path) as file:
            file.write(_heading(columns))
            file.writelines(line for _, line in self._lines.values())
        self._stamp = stamp(self.path)


def spread(values: Values) -> Json:
    """Spread the arguments of components: `optimizer_args.momentum` is a column of its own."""
    flat: Json = {}
    for key, value in values.items():
        if key.endswith("_args") and isinstance(value, Mapping):
            flat.update({sys.intern(f"{key}.{name}"): part for name, part in value.items()})
        else:
            flat[sys.intern(key)] = value  # one text for the tables of thousands of trials
    return flat


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Values]) -> None:
    """Write a CSV whose text is quoted and whose numbers are not; nothing is lost of either."""
    with replacing(path) as file:
        file.write(_heading(columns))
        file.writelines(_line(columns, row) for row in rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows that are there; a file of somebody else is not to be written over."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file)
            rows = list(reader)
            if set(FACTS[:4]) <= set(reader.fieldnames or ()):
                return rows
        except (csv.Error, UnicodeDecodeError):
            pass
    raise UserError(f"{path}: is no table of a search; move it, the results are to stand there")


def _heading(columns: Sequence[str]) -> str:
    return ",".join(map(_cell, columns)) + "\n"


def _line(columns: Sequence[str], row: Values) -> str:
    return ",".join([_cell(row.get(column)) for column in columns]) + "\n"


def _cell(value: object) -> str:
    """Write a value so that it is read back the same, and text as text."""
    if value is None or value == "":
        return ""
    if isinstance(value, (bool, int, float)):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _is_plain_number(text):  # of a row that was read
        return text
    return '"' + text.replace('"', '""') + '"'


def _is_plain_number(text: str) -> bool:
    if text in ("True", "False"):
        return True
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text)) and not text.startswith("+")
    return False
