"""The one door between a trial and the engine that started it: parameters in, scores out."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Protocol

from ballot.config.layers import flatten
from ballot.config.search_space import FIXED
from ballot.errors import UserError
from ballot.runs.trials import CONTINUES, continued_run
from ballot.values import Json, Layer

FINAL = (
    "fold",
    "folds",
    "seed",
    "split_seed",
    "all_rows",
)  # what a search sets besides, to train again

log = logging.getLogger(__name__)


class Reporter(Protocol):
    """How an engine hears of scores; what it raises means that it cannot be reached."""

    def epoch(self, score: float) -> None:
        """Take the monitored score of an epoch."""

    def final(self, score: float, failed: bool) -> None:
        """Take the score of the trial; the floor of one that failed is marked as such."""


@dataclass
class Trial:
    """What the engine says of this process; alone, nothing is asked and nothing is reported."""

    parameters: Json = field(default_factory=dict)
    id: str | None = None
    experiment: str | None = None
    sequence: int | None = None
    searched: tuple[str, ...] | None = None  # keys of the search space, where they are known
    has_gpus: bool = False  # the engine assigned it some
    reporter: Reporter | None = None
    warning: str = ""  # what is wrong with how it was started, for its log

    @property
    def in_search(self) -> bool:
        """Whether an engine started this process."""
        return self.id is not None

    @property
    def name(self) -> str | None:
        """A name for the run that sorts by the order of the trials and holds the trial's id."""
        return f"{self.experiment}-{self.sequence:03d}-{self.id}" if self.in_search else None

    @property
    def continues(self) -> str | None:
        """The run of this search from whose state it goes on, if it was stopped too early."""
        return continued_run(self.parameters, self.experiment)

    def mute(self) -> Trial:
        """Leave reporting to another process of the same trial."""
        self.reporter = None
        return self

    def report_epoch(self, score: float) -> None:
        """Report an epoch's monitored score."""
        self._report(score, final=False)

    def report_final(self, score: float, *, failed: bool = False) -> None:
        """Report the trial's score, once; the floor of a trial that failed is marked as such."""
        self._report(score, final=True, failed=failed)

    def _report(self, score: float, *, final: bool, failed: bool = False) -> None:
        assert math.isfinite(score), "a score that is not finite is a failed trial"
        if self.reporter is None:
            return
        try:
            if final:
                self.reporter.final(float(score), failed)
            else:
                self.reporter.epoch(float(score))
        except Exception as error:  # whatever an engine's channel raises when the engine has died
            self.reporter = None
            log.warning("the search does not answer (%s): this trial goes on without it", error)

    def layer(self) -> Layer:
        """Return what the tuner sets; a `UserError` where that is not for a tuner to set.

        Whoever reaches an engine's portal can post a trial with parameters of his own.
        """
        own = {key: value for key, value in self.parameters.items() if key != CONTINUES}
        layer = Layer("tuner", own)
        if self.searched is not None:
            known = {*self.searched, *FINAL}
            for key in own:
                if key not in known:
                    raise UserError(
                        f"tuner: {key} is not in the search space; add it there to try it"
                    )
        for key, _ in flatten(layer):
            if key in FIXED and key not in FINAL:
                raise UserError(
                    f"tuner: {key} cannot be searched, {FIXED[key]}; set it in the trial command"
                )
        return layer
