"""The assessor of a search: asynchronous successive halving (ASHA; Li et al., 2020).

    assessor: {className: ballot.tuning.asha.Assessor, codeDirectory: ., classArgs: {...}}

A trial that comes to a rung (after 3 and 9 epochs of 15, say) goes on where its best score so far
is among the best third of all that have come there, and is stopped otherwise; nobody waits.
A stopped trial writes its best so far, reports it, and is recorded as stopped.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

from nni.assessor import Assessor as NniAssessor
from nni.assessor import AssessResult
from nni.utils import extract_scalar_history

from ballot.errors import UserError
from ballot.runs.files import write_json
from ballot.tuning import warm_start

log = logging.getLogger("nni.ballot.halving")  # into dispatcher.log

EPOCHS = 30  # of a trial whose script does not say
BEGIN = 0.2  # of the epochs until the first rung


class Assessor(NniAssessor):
    """Stops a trial at a rung where it is not among the best 1 / `reduction_factor`.

    `start_step` is the first rung, in reports of the monitored score (epochs); without it a fifth
    of a trial's epochs. `min_trials` must have come to a rung before one is stopped there.
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        start_step: int | None = None,
        reduction_factor: float = 3,
        min_trials: int = 2,
    ) -> None:
        if optimize_mode not in ("maximize", "minimize"):
            raise ValueError(f"optimize_mode is {optimize_mode!r}; it is maximize or minimize")
        for name, value, least in (
            ("start_step", start_step, 1),
            ("min_trials", min_trials, 1),
            ("reduction_factor", reduction_factor, 1.1),
        ):
            if value is not None and not (_is_number(value) and value >= least):
                raise ValueError(f"{name} is {value!r}; it is a number from {least} on")
        self._sign = 1 if optimize_mode == "maximize" else -1
        if start_step is None:
            config = warm_start.config_of(warm_start.experiment_of(sys.argv))
            epochs = EPOCHS if config is None else config.epochs * _folds(config)
            start_step = max(1, round(BEGIN * epochs))
        self._first, self._factor, self._least = int(start_step), reduction_factor, min_trials
        self._rungs: dict[int, dict[str, float]] = {}  # epochs -> trial -> its best so far
        self._stopped: set[str] = set()

    def assess_trial(self, trial_job_id: str, trial_history: list[Any]) -> AssessResult:
        """Judge a trial by the reports it has made so far; one is stopped once."""
        scores = [self._sign * score for score in extract_scalar_history(trial_history)]
        good = True
        for rung in self._rungs_up_to(len(scores)):
            reached = self._rungs.setdefault(rung, {})
            if trial_job_id not in reached:  # a resumed trial reports its old epochs again
                reached[trial_job_id] = max(scores[:rung])
                good = good and self._is_among_the_best(reached, trial_job_id)
        if good or trial_job_id in self._stopped:
            return AssessResult.Good
        self._stopped.add(trial_job_id)
        log.info("trial %s is stopped after %d reports", trial_job_id, len(scores))
        return AssessResult.Bad

    def _rungs_up_to(self, steps: int) -> list[int]:
        found, rung = [], float(self._first)
        while round(rung) <= steps:
            found.append(round(rung))
            rung *= self._factor
        return found

    def _is_among_the_best(self, reached: dict[str, float], trial: str) -> bool:
        if len(reached) < self._least:
            return True
        kept = sorted(reached.values(), reverse=True)[: math.ceil(len(reached) / self._factor)]
        return reached[trial] >= kept[-1]

    def trial_end(self, _trial_job_id: str, _success: bool) -> None:
        """Hear that a trial has ended; what it reached stays, for others to be judged by."""
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write down what has been reached, for a search that is resumed."""
        folder = self.get_checkpoint_path()
        if folder is not None:
            try:
                write_json(Path(folder, "assessor.json"), self._rungs)
            except UserError as error:  # a full disk must not end NNI's process
                log.warning("%s", error)

    def load_checkpoint(self) -> None:
        """Take up what was written down."""
        file = Path(self.get_checkpoint_path() or "", "assessor.json")
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            self._rungs = {int(rung): dict(reached) for rung, reached in known.items()}
        except (OSError, ValueError, AttributeError) as error:
            log.warning("%s cannot be read (%s): rungs begin empty", file, error)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _folds(config: Any) -> int:
    return 1 if config.fold is not None else config.folds
