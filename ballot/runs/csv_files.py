"""CSV files of anybody's making, read as text: what is none is one line that names the file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ballot.errors import UserError

LONGEST_FIELD = 2**31 - 1  # characters; Python's own limit is 128 KiB


class DuplicateColumn(UserError):
    """A header in which a name stands twice; `columns` has the names in lower case."""

    def __init__(self, path: Path, twice: str, columns: Sequence[str]) -> None:
        super().__init__(f"{path}: two columns are called {twice!r}; keep one")
        self.columns = {name.lower() for name in columns}


def read_records(path: Path) -> list[list[str]]:
    """Read all records that are not empty, the header first; no file or no CSV is a `UserError`."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except UnicodeDecodeError as error:
        what = f"is no text in UTF-8 (byte {error.object[error.start]:#04x})"
        raise UserError(f"{path}: {what}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse a header in which a name stands twice: only the last of the columns would be read."""
    named = [name for name in columns if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise DuplicateColumn(path, twice, columns)
