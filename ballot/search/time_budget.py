"""The time of a search: until when trials are begun, when the last are cut, what the end needs.

    command ... trials ... no more are begun ... the rest is cut | they write | vote | report

All of it lies within the time that was given, so that the answer is there when it is over.
"""

from __future__ import annotations

import contextlib
import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballot.engines.interface import WRITE_S
from ballot.errors import UserError
from ballot.prediction import soup_process
from ballot.runs.files import read_json, read_rows, stamp
from ballot.runs.results import OVER
from ballot.runs.trials import TrialRecord, is_posted
from ballot.values import Values

USEFUL = 0.5  # of the usual time of a trial: one that would be cut before is not begun
BEGIN_S = 8.0  # from the command to the first trial, as far as an estimate needs it
STOP_S = 4.0  # for NNI's manager and its tuner to end
USUAL_WRITE_S = 4.0  # for a trial to write what it has, while none has shown how long it takes
VOTE_S = 2.0  # and for each megabyte of predictions (bench/vote.py):
VAL_S, TEST_S = 0.4, 0.04
REPORT_S = 20.0  # at most, and a tenth of the time: where it takes longer, it has no pictures
HOME_S = 10.0  # for what the last trials wrote on other machines; the rest came home before
SAFE = 0.9  # of the time that is left is planned with, for what is trained again or further
MARGIN = 1.5  # what was measured on a quiet machine may take longer on a busy one


@dataclass
class Budget:
    """The wall time of a search, that of its earlier commands included; times since the epoch."""

    limit: float | None  # seconds
    began: float  # when the command was typed, less the time of the earlier ones
    away: bool = False  # trials run on other machines, and their results come home
    closed: bool = False  # no trial is begun any more
    reserve: float = 0.0  # seconds after the trials, for training the best again
    ending: float = field(init=False)  # seconds from the cut of the last trials to the last word
    soup: soup_process.Kitchen = field(default_factory=soup_process.Kitchen, repr=False)
    # What a run took to write, and what its `result.json` was like when it said so.
    _tails: dict[Path, tuple[Any, float | None]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.look([])

    def hold(self, seconds: float) -> None:
        """Keep seconds after the trials, for training the best again."""
        self.reserve = seconds
        self.look([])

    def look(self, folders: Sequence[Path]) -> None:
        """Estimate how long the end takes, from what the runs in `folders` have written so far."""
        tails = [tail for folder in folders if (tail := self._tail(folder)) is not None]
        writing = min(WRITE_S, MARGIN * max(tails)) if tails else USUAL_WRITE_S
        val = sum(_size(folder / "val.csv") for folder in folders)
        test = sum(_size(folder.with_suffix(".csv")) for folder in folders)
        voting = VOTE_S + MARGIN * (VAL_S * val + TEST_S * test) / 1e6
        reporting = min(REPORT_S, 0.1 * (self.limit or float("inf")))
        souping = self.seconds_for_soup(self.soup.choose(folders)) if self.limit else 0.0
        self.ending = STOP_S + writing + voting + souping + reporting + HOME_S * self.away
        self.ending += self.reserve

    def seconds_for_soup(self, chosen: Sequence[soup_process.Candidate]) -> float:
        """Return how long averaging weights may take; 0 where it would take too much."""
        needed = MARGIN * soup_process.seconds_for(chosen)
        if self.limit is not None and needed > soup_process.SHARE * self.limit:
            return 0.0
        return needed

    def _tail(self, folder: Path) -> float | None:
        """Return what a run took to write; its files are read only where they are others."""
        said = stamp(folder / "result.json")
        if said is None:
            return None
        if folder not in self._tails or self._tails[folder][0] != said:
            self._tails[folder] = said, _seconds_to_write(folder)
        return self._tails[folder][1]

    def spent(self, now: float) -> float:
        """Return the seconds that the search has taken."""
        return max(0.0, now - self.began)

    def left(self, now: float) -> float:
        """Return the seconds until all is to be over."""
        return float("inf") if self.limit is None else self.began + self.limit - now

    def left_for_trials(self, now: float) -> float:
        """Return the seconds until the trials that run are cut."""
        return self.left(now) - self.ending

    def is_too_late(self, trials: Iterable[TrialRecord], now: float) -> bool:
        """Whether a trial that begins now would be cut before it is of use."""
        usual = usual_seconds(trials)
        return usual is not None and self.left_for_trials(now) < USEFUL * usual


def time_before(note: Values, counted: float, *, runs: bool, now: float) -> float:
    """Return the seconds that a search took before this command.

    `note` is what search.py wrote down, `counted` what NNI counted; of a search that `runs` on
    without anybody who watches, the time since then is its own too.
    """
    if runs and "began" in note:
        return max(0.0, now - note["began"])
    return max(float(note.get("spent", 0.0)), counted)


def usual_seconds(trials: Iterable[TrialRecord]) -> float | None:
    """Return the median time of the trials that came to an end of their own, if there are any."""
    times = [
        t.ended - t.started
        for t in trials
        if t.ended
        and t.started
        and t.scores
        and t.status in ("succeeded", "early_stopped")
        and t.started == t.resumed
        and not is_posted(t)
    ]
    return statistics.median(times) if times else None


def _seconds_to_write(folder: Path) -> float | None:
    """Return what a run took beside its epochs: its last predictions and its files."""
    with contextlib.suppress(UserError, OSError, ValueError, KeyError, TypeError, csv.Error):
        result = read_json(folder / "result.json")
        if result.get("status") == "done":
            epochs = [float(row["seconds"]) for row in read_rows(folder / "history.csv")]
            return max(0.0, float(result["seconds"]) - sum(epochs)) if epochs else None
    return None


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def seconds_for_trials(limit: float) -> float:
    """Return what is left of a search's time for its trials, before any of it is known."""
    return max(0.0, limit - BEGIN_S - Budget(limit, 0.0).ending)


def how_time_cut(rows: Sequence[Values]) -> str:
    """Say what the end of the time did to the trials; nothing where it did nothing."""
    cut = [row for row in rows if row["reason"] == OVER]
    if not cut:
        return ""
    kept = sum(row["score"] is not None for row in cut)
    said = f"{OVER}: {len(cut)} of {len(rows)} trials were cut, {kept} of them with a result"
    if not any(row["status"] == "done" for row in rows):
        said += "; none had come to its end, so give more --max_duration, or fewer --epochs"
    return said
