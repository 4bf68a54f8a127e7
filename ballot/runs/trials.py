"""One trial of a search, as every engine records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ballot.values import Json

TrialStatus = Literal["waiting", "running", "succeeded", "failed", "cancelled", "early_stopped"]
ENDED: tuple[TrialStatus, ...] = ("succeeded", "failed", "cancelled", "early_stopped")
OF_A_FINAL = {"fold", "folds", "split_seed"}  # no tuner gives all of these
NO_WORD = "it left no word"  # a trial that ended


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


def is_final(trial: TrialRecord) -> bool:
    """Whether it trains a configuration of the search again, and was not chosen by its tuner."""
    return trial.parameters.keys() >= OF_A_FINAL or "all_rows" in trial.parameters
