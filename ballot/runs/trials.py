"""One trial of a search, as every engine records it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from ballot.errors import UserError
from ballot.values import Json, Values

TrialStatus = Literal["waiting", "running", "succeeded", "failed", "cancelled", "early_stopped"]
ENDED: tuple[TrialStatus, ...] = ("succeeded", "failed", "cancelled", "early_stopped")
OF_A_FINAL = {"fold", "folds", "split_seed"}  # no tuner gives all of these
NO_WORD = "it left no word"  # a trial that ended
CONTINUES = "continues"  # key in the parameters of a trial: the run whose state it goes on from


@dataclass
class TrialRecord:
    """A trial as its engine recorded it; times in seconds since the epoch."""

    id: str
    sequence: int
    status: TrialStatus = "waiting"
    started: float | None = None
    resumed: float | None = None  # when its present process started; later where it was resumed
    ended: float | None = None
    scores: list[float] = field(default_factory=list)  # intermediate results, in order
    final: float | None = None
    parameters: Json = field(default_factory=dict)  # as the tuner gave them
    machine: str | None = None  # another one that it runs on, or ran on last

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come from it."""
        return self.status in ENDED

    @property
    def configuration(self) -> Json:
        """The hyperparameters alone, as the tuner gave them."""
        return {key: value for key, value in self.parameters.items() if key != CONTINUES}


def is_final(trial: TrialRecord) -> bool:
    """Whether it trains a configuration of the search again, and was not chosen by its tuner."""
    return trial.parameters.keys() >= OF_A_FINAL or "all_rows" in trial.parameters


def is_posted(trial: TrialRecord) -> bool:
    """Whether it comes on top of the trials that the tuner chose."""
    return is_final(trial) or CONTINUES in trial.parameters


def continued_run(parameters: Values, search_id: str | None) -> str | None:
    """Return the run that a trial goes on from, if any; `UserError` where it is not of its search.

    Whoever reaches an engine's portal can post a trial, and the name becomes a path.
    """
    name = parameters.get(CONTINUES)
    if name is None:
        return None
    if not re.fullmatch(rf"{re.escape(search_id or '')}-\d{{3,}}-\w+", str(name)):
        raise UserError(f"tuner: {CONTINUES} is {name!r}; it names an earlier run of the search")
    return str(name)
