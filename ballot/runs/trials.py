"""One trial of a search, as every engine records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")


@dataclass
class TrialRecord:
    """A trial as NNI's database has it; times in seconds since the epoch."""

    id: str
    sequence: int
    status: str = "WAITING"
    started: float | None = None
    resumed: float | None = None  # when its present process started; later where it was resumed
    ended: float | None = None
    scores: list[float] = field(default_factory=list)  # intermediate results, in order
    final: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # as the tuner gave them
    machine: str | None = None  # another one that it runs on, or ran on last

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come from it."""
        return self.status in ENDED


NO_WORD = "it left no word"  # a trial that ended
