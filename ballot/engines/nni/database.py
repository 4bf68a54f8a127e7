"""NNI's database of a search: its trials and their scores."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from ballot.runs.trials import ENDED, TrialRecord, TrialStatus
from ballot.values import Json

STATUSES: dict[str, TrialStatus] = {
    "WAITING": "waiting",
    "ADD_RESUMED": "waiting",
    "RUNNING": "running",
    "UNKNOWN": "running",  # of a machine that does not answer
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "USER_CANCELED": "cancelled",
    "SYS_CANCELED": "cancelled",
    "EARLY_STOPPED": "early_stopped",
}


def database_of(folder: Path) -> Path:
    """Return NNI's database of a search."""
    return folder / "db" / "nni.sqlite"


def read_trials(folder: Path) -> list[TrialRecord]:
    """Read the trials from an experiment's database, while it runs or long after."""
    return Records(folder).read()


class Records:
    """The trials of an experiment's database, of which every record is read once.

    A search that is watched asks each second, and has hundreds of thousands of records in the end.
    """

    def __init__(self, folder: Path) -> None:
        self._database = database_of(folder)
        self._last = {"TrialJobEvent": 0, "MetricData": 0}  # numbers of the rows read last
        # In the order of the records: clocks of machines differ.
        self._trials: dict[str, TrialRecord] = {}
        self._given: dict[str, Json] = {}  # first parameters, as they were recorded
        self._same: dict[str, list[Json]] = {}  # the same by the number of the parameters
        self._reported: dict[str, str] = {}  # the number that came back with a trial's last score
        self._scores: dict[str, dict[int, float]] = {}
        self._odd: set[str] = set()  # trials that were recorded with other trials' parameters

    def read(self) -> list[TrialRecord]:
        """Return the trials as they stand now, in their order; they are the same objects again."""
        # Scores first: a trial's first event stands before them, and is read after them.
        metrics = self._new("MetricData", "trialJobId, parameterId, type, sequence, data")
        events = self._new(
            "TrialJobEvent", "timestamp, trialJobId, event, sequenceId, data, logPath"
        )
        changed = {trial_id for event in events if (trial_id := self._take_event(*event))}
        changed |= {trial_id for metric in metrics if (trial_id := self._take_metric(*metric))}
        for trial_id in changed:
            found = self._scores.get(trial_id, {})
            self._trials[trial_id].scores = [score for _, score in sorted(found.items())]
        for trial_id in changed | self._odd:
            self._trials[trial_id].parameters = self._really_given(trial_id)
        return sorted(
            self._trials.values(), key=lambda trial: (trial.sequence, trial.started or 0.0)
        )

    def _new(self, table: str, columns: str) -> list[tuple]:
        query = f"SELECT rowid, {columns} FROM {table} WHERE rowid > {self._last[table]}"
        rows = query_database(self._database, f"{query} ORDER BY rowid")
        if rows:
            self._last[table] = rows[-1][0]
        return [row[1:] for row in rows]

    def _take_event(
        self,
        stamp: object,
        trial_id: object,
        event: str,
        sequence: object,
        data: object,
        place: object,
    ) -> str | None:
        # What was posted or imported has no id before it is a trial; a damaged record has less.
        if not (trial_id and isinstance(trial_id, str) and isinstance(stamp, (int, float))):
            return None
        trial = self._trials.setdefault(trial_id, TrialRecord(trial_id, len(self._trials)))
        if isinstance(sequence, int):
            trial.sequence = sequence
        if isinstance(data, str) and data and trial_id not in self._given:
            given = self._given[trial_id] = _unpack(data)
            self._same.setdefault(str(given.get("parameter_id")), []).append(given)
        if isinstance(place, str) and ":~" in place:  # NNI's address of what a remote trial says
            trial.machine = place.partition(":~")[0]
        _apply(trial, event, stamp / 1000)
        return trial_id

    def _take_metric(
        self, trial_id: object, parameter_id: object, kind: str, sequence: object, data: str
    ) -> str | None:
        if trial_id not in self._trials or not isinstance(sequence, int):
            return None
        self._reported[trial_id] = str(parameter_id)
        score = _score(data)
        if kind == "FINAL":
            self._trials[trial_id].final = score
        elif score is not None:  # one that runs again says again what it had said
            self._scores.setdefault(trial_id, {})[sequence] = score
        return trial_id

    def _really_given(self, trial_id: str) -> Json:
        """Return a trial's parameters by the number that it reported.

        Without the guard NNI records trials with other trials' parameters (#5726), but the number
        that comes back with a score is right. Numbers start anew when a search is resumed, so that
        only one that is there once says more than the record does.
        """
        own = self._given.get(trial_id, {})
        number = self._reported.get(trial_id, "None")
        if number in ("None", "null", str(own.get("parameter_id"))):
            return own.get("parameters") or {}
        self._odd.add(trial_id)  # another of that number may come
        same = self._same.get(number, [])
        return (same[0] if len(same) == 1 else own).get("parameters") or {}


def _apply(trial: TrialRecord, event: str, seconds: float) -> None:
    status = STATUSES.get(event)
    if status is None:
        return
    if event == "RUNNING":
        trial.resumed = seconds
        trial.started = seconds if trial.started is None else trial.started
    if status in ENDED:
        trial.ended = seconds
    trial.status = status


def _unpack(data: str) -> Json:
    with contextlib.suppress(ValueError):
        value = json.loads(data)
        return value if isinstance(value, dict) else {}
    return {}


def _score(data: str) -> float | None:
    value: object = data
    for _ in range(2):  # JSON inside JSON
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
    if isinstance(value, Mapping):
        value = value.get("default")
    with contextlib.suppress(OverflowError):  # an integer of 400 digits
        return float(value) if isinstance(value, (int, float)) else None
    return None


def query_database(path: Path, query: str) -> list[tuple]:
    """Return rows of NNI's database, running or not; nothing where it is not there yet."""
    if not path.exists():
        return []
    # A manager that was killed in the middle of a write leaves a journal, which only an opening
    # for writing can roll back.
    for mode in ("ro", "rw"):
        uri = f"{path.as_uri()}?mode={mode}"
        with (
            # Of a damaged database not even what SQLite says of it need be text.
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=2)) as db,
        ):
            db.text_factory = lambda text: text.decode("utf-8", "replace")
            return db.execute(query).fetchall()
    return []
