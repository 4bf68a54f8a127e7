"""The table of a search: a row a trial, in `results.csv` beside the folder of the runs.

A row is what the trial itself wrote down. NNI's records stand in only for what it could not write,
because NNI ships with records that hold other trials' parameters (docs/nni.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ballot.config.layers import flatten
from ballot.errors import CannotWrite, UserError
from ballot.runs.files import json_or_empty, stamp, write_json
from ballot.runs.folder import read_result
from ballot.runs.table import FACTS, Lines, spread
from ballot.runs.trials import NO_WORD, TrialRecord
from ballot.values import Json, Layer, Values

EARLY = "early stopping"  # the reason of a trial that the assessor stopped
OVER = "the time of the search was over"  # and of one that the search itself stopped
SIGNALS = ("SIGINT", "SIGTERM")  # all that a trial itself can know of why it was stopped

Row = Json


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
        self._said: dict[str, str] = {}  # the same, once there were some
        self._folders: dict[str, Path] = {}
        self._known: dict[str, tuple[Any, Row]] = {}  # a trial's row, and what it was made of
        self._searched: dict[str, None] = {}  # what the tuner has given to any of them
        self._written: list[Row] | None = None
        self._unexplained: list[Path] = []  # runs that do not know that they were stopped early
        self._table = Lines(self.path)
        self.reasons: dict[str, str] = {}  # of trials that this search.py ended itself

    def update(self, trials: Sequence[TrialRecord], *, over: bool = False) -> list[Row]:
        """Read what has changed, and write the file anew if a row did.

        `over` says that nothing runs any more: what still says so was killed.
        """
        self.read(trials, over=over)
        while self._unexplained:
            explain_early_stop(self._unexplained.pop())
        if self.rows != self._written:
            self._write()
            self._written = self.rows
        return self.rows

    def read(self, trials: Sequence[TrialRecord], *, over: bool) -> list[Row]:
        """Read the rows without writing anything, and of trials anew only what has changed."""
        self.rows = [self._row(trial, over) for trial in trials]
        return self.rows

    def folder_of(self, trial: TrialRecord) -> Path:
        """Return the run folder of a trial, whether it is there or not."""
        name = f"{self.search_id}-{trial.sequence:03d}-{trial.id}"
        folder = self._folders.get(name)  # asked for each trial again and again
        if folder is None:
            folder = self._folders[name] = self.outputs / name
        return folder

    def result_of(self, trial: TrialRecord) -> Json:
        """Return a trial's `result.json`; empty where there is none."""
        return read_result(self.folder_of(trial))

    def values_of(self, trial: TrialRecord) -> Json:
        """Return every value that a trial had, by the names of flags."""
        config = json_or_empty(self.folder_of(trial) / "config.json").get("values")
        return spread(config) if config else searched_values(trial)

    def best(self, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the trial with the best score among those that did not fail."""
        rows = {row["run"]: row for row in self.rows}
        scored = [
            (row["score"], trial)
            for trial in trials
            if (row := rows.get(self.folder_of(trial).name))
            and row["score"] is not None
            and row["status"] in ("done", "stopped")
        ]
        if not scored:
            return None
        return (max if self.maximize else min)(scored, key=lambda pair: pair[0])[1]

    def _row(self, trial: TrialRecord, over: bool) -> Row:
        """Return a trial's row: the same object again unless something of it has changed."""
        folder = os.fspath(self.folder_of(trial))
        made_of = (
            over,
            trial.status,
            trial.final,
            trial.scores,
            trial.resumed,
            trial.ended,
            trial.machine,
            trial.parameters,
            self.reasons.get(trial.id),
            stamp(f"{folder}/result.json"),
            stamp(f"{folder}/config.json"),
        )
        known = self._known.get(trial.id)
        if known is None or known[0] != made_of or known[1]["reason"] == NO_WORD:
            known = self._known[trial.id] = made_of, self._make_row(trial, over)
        return known[1]

    def _make_row(self, trial: TrialRecord, over: bool) -> Row:
        result = self.result_of(trial)
        self._searched.update(dict.fromkeys(searched_values(trial)))
        cut = self.reasons.get(trial.id) == OVER
        status, reason = how_it_goes(trial, result, over, cut=cut)
        if reason == EARLY and result.get("reason") in SIGNALS:
            self._unexplained.append(self.folder_of(trial))
        if status == "failed" and reason is None:
            reason = self._last_words(trial)
        if status in ("stopped", "failed"):
            reason = self.reasons.get(trial.id, reason)
        score = result.get("score")
        if score is None and status != "failed":  # NNI has the floor that a failed one reported
            reported = [trial.final] if trial.final is not None else trial.scores
            score = (max if self.maximize else min)(reported, default=None)
        seconds = result.get("seconds")
        if seconds is None and trial.ended and trial.resumed:
            seconds = round(trial.ended - trial.resumed, 3)
        facts = (
            self.folder_of(trial).name,
            status,
            reason,
            score,
            result.get("epochs", len(trial.scores)),
            seconds,
            trial.machine or result.get("machine"),
            result.get("device"),
        )
        # Facts come last: the device that was asked for is not the one that it ran on.
        return self.values_of(trial) | dict(zip(FACTS, facts))

    def _last_words(self, trial: TrialRecord) -> str:
        if trial.id not in self._said:
            said = self._words(trial.id)
            if said == NO_WORD:  # that of another machine may come yet
                return said
            self._said[trial.id] = said
        return self._said[trial.id]

    def _write(self) -> None:
        """Put this search's rows in the place of its old ones; the other searches' stay."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.parent):
            others = self._table.others(f"{self.search_id}-")
            rows = [*others, *self.rows]
            columns = dict.fromkeys([*FACTS, *self._searched, *chain.from_iterable(rows)])
            self._table.write(list(columns), rows)


def how_it_goes(
    trial: TrialRecord, result: Values, over: bool, *, cut: bool = False
) -> tuple[str, str | None]:
    """Return a trial's status (waiting, running, done, stopped or failed) and the reason.

    `cut` says that the search itself ended it: it did not fail, even if it could not write in time.
    """
    said, reason = result.get("status"), result.get("reason")
    if trial.status == "early_stopped":
        return "stopped", EARLY
    if said in ("done", "failed") or (said == "stopped" and (over or trial.has_ended)):
        return said, reason
    if trial.status == "failed":
        return "failed", None
    if trial.status == "succeeded":
        return "done", None
    if trial.has_ended and not cut:
        return "failed", "killed from outside before it could write"
    if over or trial.has_ended:
        return "stopped", "killed before it could write" if result else "ended before it began"
    return ("running" if trial.status == "running" else "waiting"), None


def explain_early_stop(folder: Path) -> None:
    """Write into a run's `result.json` why it was stopped: the run itself saw a signal alone."""
    result = read_result(folder)
    # Until it has written its last word the file is its own.
    if result.get("status") == "stopped" and result.get("reason") in SIGNALS:
        with contextlib.suppress(CannotWrite):
            write_json(folder / "result.json", result | {"reason": EARLY})


def searched_values(trial: TrialRecord) -> Json:
    """Return what the tuner gave to a trial, by the names of flags."""
    try:
        return dict(flatten(Layer("tuner", trial.configuration)))
    except UserError:  # posted through the portal; the trial itself refuses it
        return {str(key): value for key, value in trial.configuration.items()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
