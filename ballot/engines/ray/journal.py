"""What has become of each trial, a line a change, from which everything else is made again.

The driver appends to it and nobody else; search.py reads on where it stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO

from ballot.runs.trials import ENDED, TrialRecord
from ballot.values import Json, Values

FILE = "trials.jsonl"


class Journal:
    """The file as its reader sees it: the same records at each call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0  # up to which it has been read
        self._records: dict[str, TrialRecord] = {}
        self.again: dict[str, str] = {}  # trials that ran a second time, and why
        self.failed: set[str] = set()  # those whose score is the floor of a failed one

    def read(self) -> list[TrialRecord]:
        """Return the trials in their order, as they stand; a line that is cut is read later."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # of a driver that was killed as it wrote
                continue
            self.apply(event)
        return list(self._records.values())

    def record(self, trial_id: str) -> TrialRecord:
        """Return one trial."""
        return self._records[trial_id]

    def apply(self, event: Values) -> None:
        """Take a change into the records."""
        trial, at = self._records.get(event["id"]), event["at"]
        if "new" in event:
            new = event["new"]
            trial = TrialRecord(event["id"], new["sequence"], parameters=new["parameters"])
            self._records[trial.id] = trial
        if trial is None:
            return
        if "score" in event:
            trial.scores.append(event["score"])
        if "final" in event and trial.final is None:
            trial.final = event["final"]
            self.failed |= {trial.id} if event["failed"] else set()
        if "again" in event:
            self.again[trial.id] = event["again"]
        if "status" in event:
            _change_status(trial, event, at)


def _change_status(trial: TrialRecord, event: Values, at: float) -> None:
    trial.status = event["status"]
    trial.machine = event.get("machine") or trial.machine
    if trial.status == "running":
        trial.started, trial.resumed = trial.started or at, at
        trial.scores.clear()  # one that goes on reports its old epochs again
        trial.final = None
    trial.ended = at if trial.status in ENDED else None


class Writer:
    """Appends changes; what was cut when an earlier driver was killed is ended by a line break."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._file: IO[bytes] = path.open("ab")
        if self._file.tell():
            self._file.write(b"\n")
        self.trials = self._journal.read()

    @property
    def journal(self) -> Journal:
        """All that was written, as records."""
        return self._journal

    def write(self, trial_id: str, **change: object) -> None:
        """Write a change down, and take it into the records."""
        event: Json = {"at": time.time(), "id": trial_id, **change}
        self._file.write(json.dumps(event, default=str).encode() + b"\n")
        self._file.flush()
        self._journal.apply(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
