"""What a search does not recover from: noticed within a minute, and said with what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ballot.engines.interface import SearchState, Status
from ballot.runs.trials import TrialRecord

IN_A_ROW = 3  # trials that crash before their first epoch until the search is given up
SILENT_S = 30.0  # a manager under load answers late, but not this late
TUNER_S = 3.0  # how long a tuner may be away before it is taken for dead
IDLE_S = 45.0  # without a trial until it is said
GIVE_UP_S = 180.0  # without a trial until the search is ended: a slow tuner is given that long
SETTLE_S = 3.0  # how long a tuner that has no more trials is waited for
WORKING = ("running", "all_started", "exhausted")


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong with a search as a whole."""

    what: str
    remedy: str
    fatal: bool = True
    of_tuner: bool = False  # the tuner's last words may explain it
    trials: tuple[TrialRecord, ...] = ()  # those whose last words explain it


@dataclass(frozen=True)
class End:
    """How a search came to its end."""

    trouble: Trouble | None = None
    interrupted: bool = False
    over: bool = False  # its time was

    @property
    def is_regular(self) -> bool:
        """Whether nothing and nobody ended it early."""
        return not self.interrupted and self.trouble is None


@dataclass
class Watch:
    """What has been seen so far; `look` is asked about once a second."""

    search_id: str
    since: float = 0.0  # what ended before, in an earlier part of the search, is another story
    may_wait: bool = False  # for a GPU that is taken, for a machine that comes back
    _since: dict[str, float] = field(default_factory=dict)
    _tuner_seen: bool = False
    _said_idle: bool = False

    def look(
        self,
        status: Status,
        trials: Sequence[TrialRecord],
        tuner_lives: Callable[[], bool],
        now: float,
    ) -> Trouble | None:
        """Return what is wrong, or nothing."""
        again = f"python search.py --resume {self.search_id} goes on from here"
        state = status.state
        if state == "gone":
            return Trouble("the manager of the trials has died", again)
        if self._for(state == "silent", "silent", now) > SILENT_S:
            what = f"the manager of the trials has not answered for {SILENT_S:.0f} s"
            return Trouble(what, again)
        if state == "error":
            what = "; ".join(status.errors) or "the manager of the trials ended with an error"
            return Trouble(what, again, of_tuner=True)
        if state in WORKING and self._tuner_is_gone(tuner_lives(), now):
            what = "the tuner has died, so that no new trial would start"
            return Trouble(what, again, of_tuner=True)
        failing = crashed_in_a_row([t for t in trials if (t.ended or now) >= self.since])
        if len(failing) >= IN_A_ROW:
            return Trouble(
                f"{IN_A_ROW} trials in a row crashed before their first epoch",
                f"correct the error above; then {again}",
                trials=tuple(failing),
            )
        return self._idle(state, trials, now, again)

    def is_done(self, state: SearchState, trials: Sequence[TrialRecord], now: float) -> bool:
        """Whether the search has come to its end.

        A tuner that has tried everything, as grid search does, leaves its engine waiting forever.
        """
        idle = state == "exhausted" and all(trial.has_ended for trial in trials)
        return state == "done" or self._for(idle, "exhausted", now) > SETTLE_S

    def _tuner_is_gone(self, lives: bool, now: float) -> bool:
        self._tuner_seen = self._tuner_seen or lives
        return self._for(self._tuner_seen and not lives, "tuner", now) > TUNER_S

    def _idle(
        self, state: SearchState, trials: Sequence[TrialRecord], now: float, again: str
    ) -> Trouble | None:
        idle = state in ("running", "starting") and not any(
            trial.status == "running" for trial in trials
        )
        seconds = self._for(idle, "idle", now)
        if seconds <= IDLE_S:
            self._said_idle = self._said_idle and idle
            return None
        what = f"no trial has run for {seconds:.0f} s, and none starts"
        if seconds > GIVE_UP_S and not self.may_wait:
            return Trouble(what, again)
        if self._said_idle:
            return None
        self._said_idle = True
        if self.may_wait:
            return Trouble(what, "a free GPU or machine is waited for; Ctrl-C ends it", fatal=False)
        return Trouble(what, f"the tuner may be slow; ended at {GIVE_UP_S:.0f} s", fatal=False)

    def _for(self, holds: bool, what: str, now: float) -> float:
        """Return for how long something has held without a break."""
        if not holds:
            self._since.pop(what, None)
            return 0.0
        return now - self._since.setdefault(what, now)


def crashed_in_a_row(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the latest ended trials that all crashed before an epoch, the last one last.

    Trials that report out of memory or bad scores end with status SUCCEEDED: they ran, and the
    tuner learns from them.
    """
    ended = sorted((t for t in trials if t.has_ended), key=lambda t: t.ended or 0.0)
    row: list[TrialRecord] = []
    for trial in reversed(ended):
        if trial.status != "failed" or trial.scores:
            break
        row.insert(0, trial)
    return row


def overdue(
    trials: Sequence[TrialRecord], limit: float | None, signs: Mapping[str, float], now: float
) -> list[TrialRecord]:
    """Return the trials that hang: train.py ends in time, unless an epoch never ends.

    `signs` says when a trial was last seen to have written something. One that has written
    nothing yet waits for a GPU or for the cache of the images, and is left to it.
    """
    if limit is None:
        return []
    patience = limit + max(60.0, 0.5 * limit)  # reading data, the last epoch, the answers
    return [
        trial
        for trial in trials
        if trial.status == "running" and trial.id in signs and now - signs[trial.id] > patience
    ]
