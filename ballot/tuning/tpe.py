"""The tuner of a search: a Parzen estimator for few trials, several at once, some of which fail.

    tuner: {className: ballot.tuning.tpe.Tuner, codeDirectory: ., classArgs: {optimize_mode: maximize}}

NNI loads this class into the process of its tuner. What it does otherwise than NNI's TPE (Bergstra
et al., 2011), and what that is worth, stands in docs/search.md. Nothing here loads torch.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nni
import numpy as np
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.common.hpo_utils import (
    Deduplicator,
    OptimizeMode,
    deformat_parameters,
    format_search_space,
)
from nni.utils import extract_scalar_reward

from ballot.errors import UserError
from ballot.runs.files import replacing
from ballot.tuning import parzen
from ballot.tuning.warm_start import defaults_of, earlier_runs, experiment_of, place_of

log = logging.getLogger("nni.ballot.tpe")  # into dispatcher.log

FEW, MANY = 5, 10  # random trials before the model is asked
DIGITS = 10  # of a number, that a trial is given
SHARE = 0.15  # of the trials that shall be, which are random


@dataclass
class Trial:
    """A configuration, what has become of it, and its loss where there is one."""

    parameters: dict[str, Any]  # as a trial gets them
    point: dict[tuple, float] | None  # as NNI formats them; None where the space has no such place
    state: str = "running"  # or done, stopped, failed
    loss: float | None = None


def startup_jobs(max_trials: int | None) -> int:
    """Return how many trials are random where so many shall be in all."""
    return MANY if not max_trials else min(max(round(SHARE * max_trials), FEW), MANY)


class Tuner(TpeTuner):
    """NNI's TPE in its place and form, with a model of its own (`ballot.tuning.parzen`).

    A failed trial is a bad place, a stopped one is never a good one; results that come twice, late
    or are no numbers do no harm; no configuration runs twice, also where the search is resumed.
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        max_trials: int | None = None,
        defaults: bool = True,
        warm_start: list[str] | str | None = None,
        tpe_args: dict[str, Any] | None = None,
    ) -> None:
        experiment = experiment_of(sys.argv)
        max_trials = max_trials or experiment.get("maxTrialNumber")
        ours = {
            "constant_liar_type": "mean",
            "n_startup_jobs": startup_jobs(max_trials),
            "n_ei_candidates": 32,
            "gamma": 0.15,
            "prior_weight": 1.0,
        }
        super().__init__(optimize_mode, seed, {**ours, **(tpe_args or {})})
        if self.args.n_ei_candidates < 1 or not 0 < self.args.gamma <= 1:
            raise ValueError("tpe_args: n_ei_candidates is at least 1, gamma a share of the trials")
        self._lock = threading.RLock()  # NNI reports a result and the end of a trial in two threads
        self._trials: dict[str, Trial] = {}  # by their parameters
        self._keys: dict[int, str] = {}  # of the trials of this process, by NNI's number
        self._command = experiment if defaults else {}
        self._first: dict[tuple, float] = {}  # what is tried before anything else
        folders = [warm_start] if isinstance(warm_start, str) else warm_start or []
        code = Path(experiment.get("trialCodeDirectory") or ".")
        self._earlier = [code / Path(folder).expanduser() for folder in folders]
        self._design: list[dict[tuple, float]] = []
        self.space: Any

    # ------------------------------------------------------------------------- what NNI calls

    def update_search_space(self, space: dict[str, Any]) -> None:
        """Take a search space; what is known already is kept where it has a place in it."""
        with self._lock:
            begins = self.space is None
            self.space = format_search_space(space)
            self.dedup = Deduplicator(self.space)
            for trial in self._trials.values():
                trial.point = self._point(trial.parameters)
            if begins and not self._trials:
                self._first = defaults_of(self._command, self.space)
                mode = "max" if self.optimize_mode is OptimizeMode.Maximize else "min"
                for point, state, score in earlier_runs(self._earlier, self.space, mode):
                    self._add(self._parameters(point), state, score)
            self._design = parzen.latin_hypercube(self.space, self.args.n_startup_jobs, self.rng)

    def generate_parameters(self, parameter_id: int, **_: Any) -> dict[str, Any]:
        """Return a configuration that has not run yet; `NoMoreTrialError` where there is none."""
        with self._lock:
            parameters = self._choose()
            self._keys[parameter_id] = _key(parameters)
            self._add(parameters, "running")
            self.save_checkpoint()
            return parameters

    def receive_trial_result(
        self, parameter_id: int, _parameters: Any, value: Any, **_: Any
    ) -> None:
        """Take a trial's final score, the first one."""
        with self._lock:
            trial = self._trials.get(self._keys.get(parameter_id, ""))
            if trial is None or trial.loss is not None:
                log.warning("a result of trial %s is not expected: left out", parameter_id)
                return
            self._judge(trial, value, "done" if trial.state == "running" else "stopped")
            self.save_checkpoint()

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """Hear that a trial has ended: it failed, or was stopped if it has a score all the same."""
        with self._lock:
            trial = self._trials.get(self._keys.get(parameter_id, ""))
            if trial is not None and not success:
                trial.state = "failed" if trial.loss is None else "stopped"
                self.save_checkpoint()

    def import_data(self, data: Any) -> None:
        """Take results of trials that this process did not start: a search goes on."""
        with self._lock:
            self._first = {}
            for each in nni.load(data) if isinstance(data, str) else data:
                each = nni.load(each) if isinstance(each, str) else each
                self._add(each["parameter"], "done", each["value"])
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write down what is known: of failed and stopped trials NNI's database says too little."""
        folder = self.get_checkpoint_path()
        if folder is not None:
            # The keys are JSON already; to write it anew would take most of a suggestion.
            known = [
                f"[{key}, {json.dumps(trial.state)}, {json.dumps(trial.loss)}]"
                for key, trial in self._trials.items()
            ]
            try:
                with replacing(Path(folder, "tuner.json")) as file:
                    file.write("[" + ",\n".join(known) + "]\n")
            except UserError as error:  # a full disk must not end the search's tuner
                log.warning("%s", error)

    def load_checkpoint(self) -> None:
        """Take up what was written down, before the search space is known."""
        file = Path(self.get_checkpoint_path() or "", "tuner.json")
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            self._trials = {_key(p): Trial(p, None, state, loss) for p, state, loss in known}
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s): only finished trials are known", file, error)

    # ----------------------------------------------------------------------------- what is known

    def _add(self, parameters: dict[str, Any], state: str, value: Any = None) -> None:
        trial = self._trials.setdefault(
            _key(parameters), Trial(parameters, self._point(parameters))
        )
        if trial.point is not None:
            self.dedup.add_history(trial.point)
        if state == "failed":
            trial.state = "failed"
        elif state != "running" and trial.loss is None:
            self._judge(trial, value, state)

    def _judge(self, trial: Trial, value: Any, state: str) -> None:
        failed = isinstance(value, dict) and value.get("failed")
        try:
            loss = float(extract_scalar_reward(value))
        except (RuntimeError, TypeError, ValueError):
            loss = math.nan
        if failed or not math.isfinite(loss):
            trial.state = "failed"
            return
        sign = -1 if self.optimize_mode is OptimizeMode.Maximize else 1
        trial.state, trial.loss = state, sign * loss

    def _parameters(self, point: dict[tuple, float]) -> dict[str, Any]:
        return _rounded(deformat_parameters(point, self.space))

    def _point(self, parameters: dict[str, Any]) -> dict[tuple, float] | None:
        point: dict[tuple, float] = {}
        for key, spec in (self.space or {}).items():
            if spec.is_nested() and point.get(key[:-2]) != key[-2]:
                continue
            value: Any = parameters
            for name in key:
                if isinstance(name, str):
                    value = value.get(name) if isinstance(value, dict) else None
            place = place_of(spec, value)
            if place is None:
                return None
            point[key] = place
        return point or None

    # ----------------------------------------------------------------------------- what is next

    def _choose(self) -> dict[str, Any]:
        if self._first:
            first, self._first = self._first, {}
            if new := self._first_new(parzen.latin_hypercube(self.space, 4, self.rng, first)):
                return new
        proposals = self._proposals()
        # NNI's own way out goes by a grid, and says when there is nothing left.
        return self._first_new(proposals) or self._parameters(self.dedup(proposals[-1]))

    def _first_new(self, points: list[dict[tuple, float]]) -> dict[str, Any] | None:
        found = (self._parameters(point) for point in points)
        return next((each for each in found if _key(each) not in self._trials), None)

    def _proposals(self) -> list[dict[tuple, float]]:
        known = [trial for trial in self._trials.values() if trial.point is not None]
        if len(known) < self.args.n_startup_jobs and self._design:
            return [self._design.pop(), *parzen.latin_hypercube(self.space, 8, self.rng)]
        model = parzen.Model(self.space, *self._split(known), self.args.prior_weight)
        return model.propose(self.args.n_ei_candidates, self.rng)

    def _split(self, known: list[Trial]) -> tuple[list[Any], list[Any], list[Any]]:
        """Divide what is known into good, other and failed; one that runs counts as a lie."""
        failed = [trial.point for trial in known if trial.state == "failed"]
        done = [trial.loss for trial in known if trial.state == "done"]
        lies: dict[str, Any] = {"best": min, "worst": max, "mean": np.mean}
        lie = lies.get(self.args.constant_liar_type)
        lied = float(lie(done)) if lie and done else math.inf
        ranked = sorted(
            (trial.state == "stopped", lied if trial.loss is None else trial.loss, number)
            for number, trial in enumerate(known)
            if trial.state in ("done", "stopped") or (trial.state == "running" and lie)
        )
        points = [known[number].point for *_, number in ranked]
        best = min(
            math.ceil(self.args.gamma * len(points)), self.args.linear_forgetting, max(len(done), 1)
        )
        return points[:best], points[best:], failed


def _rounded(value: Any) -> Any:
    """Write numbers as a person would: 0.01, not the exponential of its logarithm."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _key(parameters: dict[str, Any]) -> str:
    return str(nni.dump(parameters, sort_keys=True))
