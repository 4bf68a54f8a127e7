"""Run folders: what a run leaves, each file whole or not there at all.

outputs/<run>.csv           test rows: id, then one column a class
outputs/<run>/config.json   every value and the layer it came from
              result.json   status, score, times        history.csv   a row an epoch
              split.csv     id, label, split, group     val.csv       id, label, classes
              excluded.csv  submission.csv  best.pt  last.pt  run.log  tensorboard/
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from ballot.errors import UserError
from ballot.runs.files import json_or_empty, remove_half_written, replacing, write_json
from ballot.values import Json, Values

FINISHED = ("done", "stopped", "failed")  # statuses of a run that nothing works on any more


class Run:
    """One run's folder; whatever ends the run, `result.json` says how.

    `writes` is false in a process that leaves writing to another one of the same trial.
    """

    def __init__(self, folder: Path, facts: Values, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.name = folder.name
        self.result: Json = {
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

    def begin(self, **facts: object) -> None:
        """Say that the run is under way; seconds of an earlier part of it are kept."""
        before = read_result(self.folder)
        self._seconds_before = float(before.get("seconds") or 0.0)
        self.result["started"] = before.get("started") or _now()
        self.update(**facts)

    def update(self, **facts: object) -> None:
        """Write `facts` and the time spent so far into `result.json`."""
        seconds = self._seconds_before + time.monotonic() - self._started
        self.result.update(facts, seconds=round(seconds, 3))
        if self.writes:
            write_json(self.folder / "result.json", self.result)

    def finish(self, status: str, **facts: object) -> None:
        """Write the last word: `done`, `stopped` or `failed`."""
        self.update(status=status, ended=_now(), **facts)


def read_result(folder: Path) -> Json:
    """Read a run's `result.json`; without a readable one the answer is empty."""
    return json_or_empty(folder / "result.json")


def run_to_resume(path: Path) -> Path:
    """Return the run folder that `path` is, or whose `last.pt` it is."""
    if path.suffix not in (".pt", ".pth") or path.is_dir():
        return path
    if path.name != "last.pt":
        raise UserError(
            f"resume: a run goes on from its last.pt; --init_from {path} starts a new "
            "one from these weights"
        )
    folder = path.parent
    inner = re.fullmatch(r"fold\d+", folder.name) and not (folder / "config.json").exists()
    return folder.parent if inner else folder


def read_config(folder: Path) -> Json:
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
def open_run(folder: Path, *, resume: bool, facts: Values, writes: bool = True) -> Iterator[Run]:
    """Make the run's folder and hold it against a second process until the run ends.

    Without `writes` it is another process of the same trial that does so.
    """
    if not writes:
        yield Run(folder, facts, writes=False)
        return
    if folder.exists() and not resume:
        raise UserError(
            f"{folder}: exists already; --resume {folder} continues it, "
            "--run_name gives another name"
        )
    is_old = folder.exists()
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
        if is_old:
            for place in (folder, *folder.glob("fold*")):
                remove_half_written(place)
            remove_half_written(folder.parent, glob.escape(f"{folder.name}.csv"))
        yield Run(folder, facts)
    finally:
        os.close(descriptor)


def continue_run(old: Path, new: Path) -> None:
    """Let a run begin with the state of another one, from which `--resume` goes on.

    Predictions are left: a run makes its own. `result.json` comes last and says that all is there.
    """
    if (new / "result.json").exists():
        return
    files = [path for path in old.rglob("*") if path.is_file() and not path.name.startswith(".")]
    files = [path for path in files if path.name not in (VALIDATION, "submission.csv")]
    if not any(path.name == "last.pt" for path in files):
        raise UserError(f"{old}: has no last.pt to go on from")
    for path in sorted(files, key=lambda path: path.name == "result.json"):
        with path.open("rb") as source, replacing(new / path.relative_to(old), "wb") as target:
            shutil.copyfileobj(source, target)


def being_written(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders that a process of this machine holds, without asking for their locks.

    To try a lock, even for a moment, could end a trial that starts just then.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        # 1: FLOCK  ADVISORY  WRITE 812 fe:00:131081 0 EOF
        words = [line.split() for line in lines]
        held = {
            place.rpartition(":")[2] for w in words if "FLOCK" in w for place in w if ":" in place
        }
        return [
            folder for folder in folders if folder.exists() and str(folder.stat().st_ino) in held
        ]
    return []


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


FINISHED = ("done", "stopped", "failed")  # statuses of a run that nothing works on any more
VALIDATION = "val.csv"  # in a run's folder: what a run votes with where the data have no test rows


def is_validation(file: Path) -> bool:
    """Tell whether these are a run's validation rows, and not the ballot of a run called val."""
    return file.name == VALIDATION and not file.with_suffix("").is_dir()


def run_of(file: Path) -> Path:
    """Return the folder of the run whose predictions these are, whether it is there or not."""
    return file.parent if is_validation(file) else file.with_suffix("")


def ballots_of(runs: Iterable[Path]) -> list[Path]:
    """Return what runs vote with: predictions of test rows or, where none has any, validation rows.

    Runs without them have no part in it, and of one that another goes on from the other counts.
    """
    runs = list(runs)
    tested = [run.with_name(f"{run.name}.csv") for run in runs]
    files = [file for file in tested if file.is_file()]
    files = files or [file for run in runs if (file := run / VALIDATION).is_file()]
    continued = continued_of(files)
    return [file for file in files if file not in continued]


def continued_of(files: Sequence[Path]) -> list[Path]:
    """Return the predictions of runs that another one of these goes on from: the same network."""
    runs = [run_of(file) for file in files]
    names = [read_result(run).get("continues") for run in runs]
    continued = {run.parent / name for run, name in zip(runs, names) if isinstance(name, str)}
    return [file for file, run in zip(files, runs) if run in continued]
