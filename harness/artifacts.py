"""Run folders: what a run leaves, each file whole or not there at all.

outputs/<run>.csv           test rows: id, then one column a class
outputs/<run>/config.json   every value and the layer it came from
              result.json   status, score, times        history.csv   a row an epoch
              split.csv     id, label, split, group     val.csv       id, label, classes
              submission.csv  best.pt  last.pt  run.log  tensorboard/
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from harness.errors import CannotWrite, UserError


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file that takes `path`'s place once it is written whole and on the disk.

    A folder that is not there is made; what cannot be written is a `CannotWrite`.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, mode, **text) as file:
            os.fchmod(file.fileno(), 0o644)  # a temporary file is its owner's alone
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a number that is not finite becomes null, which is what JSON has for it."""
    with replacing(path) as file:
        json.dump(_finite(value), file, indent=2, ensure_ascii=False, default=str)
        file.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write dictionaries as CSV; the columns are those of the first row, then any later ones."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV that this module wrote; no file is no rows, and a row that is cut is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [row for row in rows if None not in row and None not in row.values()]


class Run:
    """One run's folder; whatever ends the run, `result.json` says how.

    `writes` is false in a process that leaves writing to another one of the same trial.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.name = folder.name
        self.result: dict[str, Any] = {
            "run": self.name,
            "status": "running",
            "reason": None,
            **facts,
        }
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def soft_csv(self) -> Path:
        """The run's ballot: `outputs/<run>.csv`."""
        return self.folder.with_name(f"{self.name}.csv")

    def begin(self, **facts: Any) -> None:
        """Say that the run is under way; seconds of an earlier part of it are kept."""
        before = read_result(self.folder)
        self._seconds_before = float(before.get("seconds") or 0.0)
        self.result["started"] = before.get("started") or _now()
        self.update(**facts)

    def update(self, **facts: Any) -> None:
        """Write `facts` and the time spent so far into `result.json`."""
        seconds = self._seconds_before + time.monotonic() - self._started
        self.result.update(facts, seconds=round(seconds, 3))
        if self.writes:
            write_json(self.folder / "result.json", self.result)

    def finish(self, status: str, **facts: Any) -> None:
        """Write the last word: `done`, `stopped` or `failed`."""
        self.update(status=status, ended=_now(), **facts)


def read_result(folder: Path) -> dict[str, Any]:
    """Read a run's `result.json`; without a readable one the answer is empty."""
    return json_or_empty(folder / "result.json")


def json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; without a readable one the answer is empty."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def stamp(path: str | Path) -> tuple[int, ...] | None:
    """Return what is another for another file, as `replacing` makes it; none where there is none.

    A search asks this of thousands of files a second apart, and reads those that are others.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - to make a Path takes longer than the call
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def run_of(path: Path) -> Path:
    """Return the run folder that `path` is, or whose `last.pt` it is."""
    if path.suffix not in (".pt", ".pth") or path.is_dir():
        return path
    if path.name != "last.pt":
        raise UserError(f"resume: a run goes on from its last.pt; --init_from {path} starts a new "
                        "one from these weights")  # fmt: skip
    folder = path.parent
    inner = re.fullmatch(r"fold\d+", folder.name) and not (folder / "config.json").exists()
    return folder.parent if inner else folder


def read_config(folder: Path) -> dict[str, Any]:
    """Read the values that the run in `folder` had, or say that it is no run folder."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["values"]
    except OSError:
        raise UserError(
            f"{folder}: is no run folder; it has no config.json to resume from"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; start a new run") from None


@contextlib.contextmanager
def open_run(
    folder: Path, *, resume: bool, facts: Mapping[str, Any], writes: bool = True
) -> Iterator[Run]:
    """Make the run's folder and hold it against a second process until the run ends.

    Without `writes` it is another process of the same trial that does so.
    """
    if not writes:
        yield Run(folder, facts, writes=False)
        return
    if folder.exists() and not resume:
        raise UserError(f"{folder}: exists already; --resume {folder} continues it, "
                        "--run_name gives another name")  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=resume)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); see --out_dir") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"{folder}: another process is writing this run; wait for it") from None
    try:
        yield Run(folder, facts)
    finally:
        os.close(descriptor)


def run_name(wanted: str | None, model: str, criterion: str) -> str:
    """Return a name that is one path component: as wanted, or model, criterion and time."""
    if wanted is None:
        when = datetime.now().strftime("%Y%m%d-%H%M%S")
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', model)}_{criterion}_{when}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*", wanted) or len(wanted) > 200:
        raise UserError(
            f"run_name: {wanted!r} is no name for a folder; use letters, digits, - and _"
        )
    return wanted


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
