"""The table of a search: a row a trial, in `results.csv` beside the folder of the runs.

A row is what the trial itself wrote down. NNI's records stand in only for what it could not write,
because NNI ships with records that hold other trials' parameters (docs/nni.md).
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.artifacts import replacing
from harness.config import Layer, flatten
from harness.errors import UserError
from harness.experiment import TrialRecord

FACTS = ("run", "status", "reason", "score", "epochs", "seconds", "machine", "device")

Row = dict[str, Any]


class Results:
    """The rows of one search, and the file that holds them beside those of other searches."""

    def __init__(
        self, search_id: str, outputs: Path, *, maximize: bool, words: Callable[[str], str]
    ) -> None:
        self.search_id = search_id
        self.outputs = outputs
        self.path = outputs.parent / "results.csv"
        self.rows: list[Row] = []
        self.maximize = maximize
        self._words = words  # the last words of a trial that left nothing else
        self._seen: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._written: list[Row] | None = None
        self.reasons: dict[str, str] = {}  # of trials that this search.py ended itself

    def update(self, trials: Sequence[TrialRecord], *, over: bool = False) -> list[Row]:
        """Read what has changed, and write the file anew if a row did.

        `over` says that nothing runs any more: what still says so was killed.
        """
        self.read(trials, over=over)
        if self.rows != self._written:
            names = dict.fromkeys(key for trial in trials for key in searched_values(trial))
            self._write(list(names))
            self._written = [dict(row) for row in self.rows]
        return self.rows

    def read(self, trials: Sequence[TrialRecord], *, over: bool) -> list[Row]:
        """Read the rows without writing anything."""
        self.rows = [self._row(trial, over) for trial in trials]
        return self.rows

    def folder_of(self, trial: TrialRecord) -> Path:
        """Return the run folder of a trial, whether it is there or not."""
        return self.outputs / f"{self.search_id}-{trial.sequence:03d}-{trial.id}"

    def result_of(self, trial: TrialRecord) -> dict[str, Any]:
        """Return a trial's `result.json`; empty where there is none."""
        return self._json(self.folder_of(trial) / "result.json")

    def values_of(self, trial: TrialRecord) -> dict[str, Any]:
        """Return every value that a trial had, by the names of flags."""
        config = self._json(self.folder_of(trial) / "config.json").get("values")
        return spread(config) if config else searched_values(trial)

    def best(self, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the trial with the best score among those that did not fail."""
        rows = {row["run"]: row for row in self.rows}
        scored = [
            (row["score"], trial) for trial in trials
            if (row := rows.get(self.folder_of(trial).name))
            and row["score"] is not None and row["status"] in ("done", "stopped")
        ]  # fmt: skip
        if not scored:
            return None
        return (max if self.maximize else min)(scored, key=lambda pair: pair[0])[1]

    def _json(self, path: Path) -> dict[str, Any]:
        """Read a file that is replaced as a whole; again only where it is another one."""
        try:
            stamp = path.stat().st_mtime_ns
            if self._seen.get(path, (None,))[0] != stamp:
                self._seen[path] = (stamp, json.loads(path.read_text(encoding="utf-8")))
            return self._seen[path][1]
        except (OSError, ValueError):
            return {}

    def _row(self, trial: TrialRecord, over: bool) -> Row:
        result = self.result_of(trial)
        status, reason = how_it_goes(trial, result, over)
        if status == "failed" and reason is None:
            reason = self._words(trial.id)
        if status in ("stopped", "failed"):
            reason = self.reasons.get(trial.id, reason)
        score = result.get("score")
        if score is None and status != "failed":  # NNI has the floor that a failed one reported
            reported = [trial.final] if trial.final is not None else trial.scores
            score = (max if self.maximize else min)(reported, default=None)
        seconds = result.get("seconds")
        if seconds is None and trial.ended and trial.resumed:
            seconds = round(trial.ended - trial.resumed, 3)
        facts = (self.folder_of(trial).name, status, reason, score,
                 result.get("epochs", len(trial.scores)), seconds,
                 trial.machine or result.get("machine"), result.get("device"))  # fmt: skip
        # Facts come last: the device that was asked for is not the one that it ran on.
        return self.values_of(trial) | dict(zip(FACTS, facts))

    def _write(self, searched: Sequence[str]) -> None:
        """Put this search's rows in the place of its old ones; the other searches' stay."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.parent):
            others = [row for row in read_table(self.path)
                      if not row["run"].startswith(f"{self.search_id}-")]  # fmt: skip
            rows = [*others, *self.rows]
            columns = dict.fromkeys([*FACTS, *searched, *(k for row in rows for k in row)])
            write_table(self.path, list(columns), rows)


def how_it_goes(
    trial: TrialRecord, result: Mapping[str, Any], over: bool
) -> tuple[str, str | None]:
    """Return a trial's status (waiting, running, done, stopped or failed) and the reason."""
    said, reason = result.get("status"), result.get("reason")
    if trial.status == "EARLY_STOPPED":
        return "stopped", "ended early by the assessor"
    if said in ("done", "failed") or (said == "stopped" and (over or trial.has_ended)):
        return said, reason
    if trial.status == "FAILED":
        return "failed", None
    if trial.status == "SUCCEEDED":
        return "done", None
    if trial.has_ended:
        return "failed", "killed from outside before it could write"
    if over:
        return "stopped", "killed before it could write" if result else "ended before it began"
    return ("running" if trial.status == "RUNNING" else "waiting"), None


def searched_values(trial: TrialRecord) -> dict[str, Any]:
    """Return what the tuner gave to a trial, by the names of flags."""
    try:
        return dict(flatten(Layer("tuner", trial.parameters)))
    except UserError:  # posted through the portal; the trial itself refuses it
        return {str(key): value for key, value in trial.parameters.items()}


def spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Spread the arguments of components: `optimizer_args.momentum` is a column of its own."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("_args") and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": part for name, part in value.items()})
        else:
            flat[key] = value
    return flat


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV whose text is quoted and whose numbers are not; nothing is lost of either."""
    with replacing(path) as file:
        file.write(",".join(map(_cell, columns)) + "\n")
        for row in rows:
            file.write(",".join(_cell(row.get(column)) for column in columns) + "\n")


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows that are there; a file of somebody else is not to be written over."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if not set(FACTS[:4]) <= set(reader.fieldnames or ()):
        raise UserError(f"{path}: is no table of a search; move it, the results are to stand there")
    return rows


def _cell(value: Any) -> str:
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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
