"""The assessor as NNI loads it; which trial it stops is `ballot.tuning.asha`'s.

    assessor:
      className: ballot.engines.nni.assessor.Assessor
      codeDirectory: .
      classArgs: {optimize_mode: maximize}

A stopped trial writes its best so far, reports it, and is recorded as stopped.
"""

from __future__ import annotations

import logging
import sys

from nni.assessor import Assessor as NniAssessor
from nni.assessor import AssessResult
from nni.utils import extract_scalar_history

from ballot.config.schema import Config
from ballot.engines.nni import dispatcher
from ballot.tuning.asha import ASHA

log = logging.getLogger(__name__)

FILE = "assessor.json"


class Assessor(NniAssessor):
    """Turns NNI's calls into those of an `ASHA`, whose arguments it takes."""

    def __init__(
        self,
        optimize_mode: str = "maximize",
        start_step: int | None = None,
        reduction_factor: float = 3,
        min_trials: int = 2,
    ) -> None:
        experiment = dispatcher.experiment_of(sys.argv)
        if experiment:
            dispatcher.log_into_dispatcher()
        config = dispatcher.config_of(experiment) if start_step is None else None
        self._asha = ASHA(
            mode=dispatcher.mode_of(optimize_mode),
            epochs=None if config is None else config.epochs * _folds(config),
            start_step=start_step,
            reduction_factor=reduction_factor,
            min_trials=min_trials,
        )

    def assess_trial(self, trial_job_id: str, trial_history: list[object]) -> AssessResult:
        """Judge a trial by the reports it has made so far."""
        goes_on = self._asha.report(trial_job_id, extract_scalar_history(trial_history))
        return AssessResult.Good if goes_on else AssessResult.Bad

    def trial_end(self, _trial_job_id: str, _success: bool) -> None:
        """Hear that a trial has ended; what it reached stays, for others to be judged by."""
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write down what has been reached, for a search that is resumed."""
        dispatcher.write_state(self.get_checkpoint_path(), FILE, self._asha.state())

    def load_checkpoint(self) -> None:
        """Take up what was written down."""
        try:
            self._asha.restore(dispatcher.read_state(self.get_checkpoint_path(), FILE))
        except ValueError as error:
            log.warning("%s cannot be read (%s): rungs begin empty", FILE, error)


def _folds(config: Config) -> int:
    return 1 if config.fold is not None else config.folds
