"""Files that are whole under their name: JSON and CSV, written beside it and moved there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ballot.errors import CannotWrite, UserError
from ballot.utf8 import not_utf8
from ballot.values import Json, Values


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file that takes `path`'s place once it is written whole and on the disk.

    A folder that is not there is made; what cannot be written is a `CannotWrite`.
    """
    text: Json = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # Who may read it is the umask's matter, which a file of tempfile's does not heed.
        handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        temporary = beside
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written ({error.strerror or error})") from None
    except UnicodeEncodeError as error:  # of a folder's name, or an argument's
        around = slice(max(0, error.start - 20), error.end + 20)
        wrong = not_utf8([error.object[around]])
        raise UserError(f"{path}: cannot be written: {wrong}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_half_written(folder: Path, name: str = "*") -> None:
    """Remove what a killed process was writing to the files `name` in `folder` with `replacing`."""
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(path: Path, value: object) -> None:
    """Write JSON; a number that is not finite becomes null, which is what JSON has for it."""
    with replacing(path) as file:
        json.dump(_finite(value), file, indent=2, ensure_ascii=False, default=str)
        file.write("\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_rows(path: Path, rows: Sequence[Values]) -> None:
    """Write dictionaries as CSV; the columns are those of the first row, then any later ones."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as file:
        writer = csv.DictWriter(_Lines(file), columns, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


class _Lines:
    """Ends lines as Unix does; `csv` before 3.13 quotes CR only where lines end in CR LF."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV that this module wrote; no file is no rows, and a row that is cut is none.

    What is no CSV any more is a `UserError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    try:
        return [row for row in rows if None not in row and None not in row.values()]
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV ({error}); remove it, or the run") from None


def stamp(path: str | Path) -> tuple[int, ...] | None:
    """Return what is another for another file, as `replacing` makes it; none where there is none.

    A search asks this of thousands of files a second apart, and reads those that are others.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - to make a Path takes longer than the call
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_json(path: Path) -> Json:
    """Read a JSON object; a missing file is an empty one, a damaged one a `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); vote without this run") from None
    return value if isinstance(value, dict) else {}


def json_or_empty(path: Path) -> Json:
    """Read a JSON object; one that is missing, damaged or no object is an empty one."""
    try:
        return read_json(path)
    except UserError:
        return {}
