"""The tuner as NNI loads it; what it suggests is `ballot.tuning.tpe`'s.

tuner:
  className: ballot.engines.nni.tuner.Tuner
  codeDirectory: .
  classArgs: {optimize_mode: maximize}
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nni
from nni.tuner import Tuner as NniTuner
from nni.utils import extract_scalar_reward

from ballot.engines.nni import dispatcher
from ballot.tuning.space import Values
from ballot.tuning.tpe import TPE, Exhausted
from ballot.values import Json

log = logging.getLogger(__name__)

FILE = "tuner.json"  # of failed and stopped trials NNI's database says too little


class Tuner(NniTuner):
    """Turns NNI's calls into those of a `TPE`; trials have numbers here, and values there."""

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        max_trials: int | None = None,
        defaults: bool = True,
        warm_start: list[str] | str | None = None,
        tpe_args: Json | None = None,
        first: list[Values] | None = None,
    ) -> None:
        experiment = dispatcher.experiment_of(sys.argv)
        if experiment:
            dispatcher.log_into_dispatcher()
        config = dispatcher.config_of(experiment) if defaults else None
        folders = [warm_start] if isinstance(warm_start, str) else warm_start or []
        code = dispatcher.code_of(experiment)
        self._tpe = TPE(
            mode=dispatcher.mode_of(optimize_mode),
            seed=seed,
            max_trials=max_trials or experiment.get("maxTrialNumber"),
            defaults=None if config is None else asdict(config),
            warm_start=[code / Path(folder).expanduser() for folder in folders],
            tpe_args=tpe_args,
            first=first or [],
        )
        self._values: dict[int, Values] = {}  # of the trials of this process, by NNI's number
        self._lock = threading.Lock()  # results and ends come in two threads, and write one file

    def update_search_space(self, search_space: Mapping[str, object]) -> None:
        """Take a search space."""
        self._tpe.set_space(search_space)

    def generate_parameters(self, parameter_id: int, **_: object) -> Values:
        """Return a configuration that has not run yet; `NoMoreTrialError` where there is none."""
        try:
            values = self._tpe.ask()
        except Exhausted as error:
            raise nni.NoMoreTrialError(str(error)) from None
        self._values[parameter_id] = values
        self.save_checkpoint()
        return values

    def receive_trial_result(
        self, parameter_id: int, _parameters: Values, value: object, **_: object
    ) -> None:
        """Take a trial's final score, the first one."""
        self._tell(parameter_id, "done", _score_of(value))

    def trial_end(self, parameter_id: int, success: bool, **_: object) -> None:
        """Hear that a trial has ended: it failed, or was stopped if it has a score all the same."""
        if not success:
            self._tell(parameter_id, "failed")

    def _tell(self, parameter_id: int, state: str, score: float | None = None) -> None:
        values = self._values.get(parameter_id)
        if values is None:  # one that a person posted
            log.warning("trial %s is not known here: ignored", parameter_id)
            return
        self._tpe.tell(values, state, score)
        self.save_checkpoint()

    def import_data(self, data: str | Iterable[Any]) -> None:
        """Take results of trials that this process did not start: a search goes on."""
        for each in nni.load(data) if isinstance(data, str) else data:
            trial = nni.load(each) if isinstance(each, str) else each
            self._tpe.add(trial["parameter"], "done", _score_of(trial["value"]))
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write down what is known."""
        folder = self.get_checkpoint_path()
        if folder is not None:
            with self._lock:
                dispatcher.write_state(folder, FILE, self._tpe.state())

    def load_checkpoint(self) -> None:
        """Take up what was written down; NNI calls this before the search space is known.

        NNI asks for configurations ahead, and forgets those that are no trials yet when it ends.
        """
        folder = self.get_checkpoint_path()
        try:
            text = dispatcher.read_state(folder, FILE)
            self._tpe.restore(text, dispatcher.begun_of(folder))
        except ValueError as error:
            log.warning("%s cannot be read (%s): only finished trials are known", FILE, error)


def _score_of(value: object) -> float | None:
    """Return the number of a final report, None where there is none or it says that it failed."""
    if isinstance(value, dict) and value.get("failed"):
        return None
    try:
        return float(extract_scalar_reward(value))
    except RuntimeError:
        return None
