"""What to try next: a Parzen estimator for few trials, several at once, some of which fail.

    tpe = TPE({"lr": {"_type": "loguniform", "_value": [0.001, 0.1]}}, mode="max")
    values = tpe.ask()
    tpe.tell(values, "done", score)

How it differs from the TPE of Bergstra et al. (2011), and what that is worth, stands in
docs/tuner.md. Nothing here loads torch, and nothing knows who runs the trials.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ballot.errors import UserError
from ballot.tuning import parzen
from ballot.tuning.space import (
    Point,
    Space,
    Values,
    grid,
    parse,
    partial_point,
    point_of,
    values_of,
)
from ballot.tuning.warm_start import defaults_of, earlier_runs

log = logging.getLogger(__name__)

FEW, MANY = 5, 10  # random trials before the model is asked
SHARE = 0.15  # of the trials in all, which are random
DRAWS = 4  # of what a configuration that is tried first leaves open
SPARE = 8  # random points beside one of the start-up design, which may have run already
LIES: dict[str, Callable[[Sequence[float]], float]] = {"best": min, "worst": max, "mean": np.mean}


class Exhausted(Exception):
    """Every configuration of the search space has been tried."""


@dataclass(frozen=True)
class Arguments:
    """The estimator's own arguments, as `tpe_args` names them."""

    constant_liar_type: str | None = "mean"  # what a trial that still runs counts as
    n_startup_jobs: int = MANY
    n_ei_candidates: int = 32
    linear_forgetting: int = 25  # at most so many trials are good ones
    prior_weight: float = 1.0
    gamma: float = 0.15  # share of the trials that are good ones

    def __post_init__(self) -> None:
        if self.n_ei_candidates < 1 or not 0 < self.gamma <= 1:
            raise ValueError("tpe_args: n_ei_candidates is at least 1, gamma a share of the trials")
        if self.constant_liar_type not in (*LIES, None):
            raise ValueError(
                f"tpe_args: constant_liar_type is {self.constant_liar_type!r}; "
                f"it is {', '.join(LIES)} or null"
            )


@dataclass
class Observation:
    """A configuration, what has become of it, and its loss where there is one."""

    values: Values
    point: Point | None  # None where the search space has no such place
    state: str = "running"  # or done, stopped, failed
    loss: float | None = None


def startup_jobs(max_trials: int | None) -> int:
    """Return how many trials are random in a search of so many."""
    return MANY if not max_trials else min(max(round(SHARE * max_trials), FEW), MANY)


class TPE:
    """Ask it for a configuration, and tell it what became of each; several threads may.

    A failed trial is a bad place, a stopped one is never a good one; outcomes that come twice, late
    or are no numbers do no harm; no configuration is given twice, also where a search is resumed.
    """

    def __init__(
        self,
        space: Mapping[str, object] | None = None,
        *,
        mode: str = "max",
        seed: int | None = None,
        max_trials: int | None = None,
        defaults: Mapping[str, object] | None = None,
        first: Sequence[Values] = (),
        warm_start: Sequence[Path] = (),
        tpe_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a search; where the space is not known yet, `set_space` follows.

        `mode` is `max` or `min`. Tried before anything else are `defaults`, a trial's `Config` as
        a dictionary that is moved into the space, then each of `first`: values that lie in the
        space; what they leave open is drawn. `warm_start` has folders of earlier runs.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; it is max or min")
        self.mode = mode
        usual = {"n_startup_jobs": startup_jobs(max_trials)}
        self.args = Arguments(**{**usual, **(tpe_args or {})})
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
        log.info("random seed %d", seed)
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._trials: dict[str, Observation] = {}  # by their values
        self._defaults, self._warm_start = defaults, list(warm_start)
        self._start: Values = {}  # the defaults, moved into the space
        self._first = list(first)
        self._space: Space | None = None
        self._grid: Iterator[Point] = iter(())
        self._design: list[Point] = []
        if space is not None:
            self.set_space(space)

    @property
    def running(self) -> list[Values]:
        """The configurations that were asked for, and of which nothing has been told."""
        with self._lock:
            return [trial.values for trial in self._trials.values() if trial.state == "running"]

    def trials(self) -> list[Observation]:
        """Return all that is known, in the order in which it came."""
        with self._lock:
            return list(self._trials.values())

    def set_space(self, space: Mapping[str, Any]) -> None:
        """Take a search space; what is known already is kept where it has a place in it.

        At the first time, `first` is checked: what is not in the space is a `UserError`.
        """
        parsed = parse(space)
        with self._lock:
            begins, self._space = self._space is None, parsed
            self._grid = grid(parsed)
            for trial in self._trials.values():
                trial.point = point_of(parsed, trial.values)
            if begins:
                self._begin(parsed)
            self._design = parzen.latin_hypercube(parsed, self.args.n_startup_jobs, self._rng)

    def _begin(self, space: Space) -> None:
        for number, values in enumerate(self._first):
            partial_point(space, values, f"first[{number}]")
        if self._trials:  # a search that goes on
            return
        if self._defaults is not None:
            self._start = values_of(space, defaults_of(self._defaults, space))
        for point, state, score in earlier_runs(self._warm_start, space, self.mode):
            self._add(values_of(space, point), state, score)

    def ask(self) -> Values:
        """Return a configuration that has not run yet; `Exhausted` where there is none left."""
        with self._lock:
            values = self._choose()
            self._add(values, "running")
            return values

    def tell(self, values: Values, state: str, score: float | None = None) -> None:
        """Hear what became of a configuration: it is `done` or `stopped`, or has `failed`.

        This may come in parts: one that has a score and has failed then, or the other way round,
        was stopped. The first score counts; a `done` one that is no number has failed.
        """
        with self._lock:
            trial = self._trials.get(_key(values))
            if trial is None:
                log.warning("an outcome of %s, which was not asked for: ignored", values)
            elif state == "failed" or (state == "stopped" and score is None):
                trial.state = "failed" if trial.loss is None else "stopped"
            elif trial.loss is not None:
                log.warning("a second score of %s: ignored", values)
                trial.state = "stopped" if state == "stopped" else trial.state
            else:
                self._judge(trial, score, state if trial.state == "running" else "stopped")

    def add(self, values: Values, state: str, score: float | None = None) -> None:
        """Take a trial that was not asked for here, of a search that goes on or another one.

        What is known of it already stays.
        """
        with self._lock:
            self._forget_defaults()
            self._add(values, state, score)

    def state(self) -> str:
        """Return all that is known as JSON: a list of values, state and loss of each trial."""
        with self._lock:
            # The keys are JSON already; to write it anew would take most of a suggestion.
            known = [
                f"[{key}, {json.dumps(trial.state)}, {json.dumps(trial.loss)}]"
                for key, trial in self._trials.items()
            ]
        return "[" + ",\n".join(known) + "]\n"

    def restore(self, text: str, begun: Iterable[Values] | None = None) -> None:
        """Take up what `state` returned; `ValueError` where it is damaged, and nothing changes.

        `begun` are the configurations of which there is a trial: one that was asked for just before
        the end has none, and may be asked for again.
        """
        try:
            trials = {
                _key(p): Observation(p, None, state, loss) for p, state, loss in json.loads(text)
            }
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None
        if begun is not None:
            kept = set(map(_key, begun))
            trials = {
                key: trial
                for key, trial in trials.items()
                if trial.state != "running" or key in kept
            }
        with self._lock:
            self._trials = trials
            if trials:
                self._forget_defaults()
            for trial in trials.values() if self._space else ():
                trial.point = point_of(self._space or {}, trial.values)

    # ----------------------------------------------------------------------------- what is known

    def _forget_defaults(self) -> None:
        """Leave out the defaults where a search goes on: they ran, whatever became of them."""
        self._defaults, self._start = None, {}

    def _add(self, values: Values, state: str, score: float | None = None) -> None:
        trial = self._trials.get(_key(values))
        if trial is None:
            trial = Observation(values, point_of(self._space or {}, values))
            self._trials[_key(values)] = trial
        if state == "failed":
            trial.state = "failed"
        elif state != "running" and trial.loss is None:
            self._judge(trial, score, state)

    def _judge(self, trial: Observation, score: float | None, state: str) -> None:
        if score is None or not math.isfinite(score):
            trial.state = "failed"
            return
        trial.state, trial.loss = state, float(-score if self.mode == "max" else score)

    # ----------------------------------------------------------------------------- what is next

    def _choose(self) -> Values:
        if self._space is None:
            raise RuntimeError("the search space is not set")
        values = self._next_of_first(self._space)
        values = values or self._first_new(self._proposals(self._space))
        values = values or self._first_new(self._grid)
        if values is None:
            raise Exhausted("every configuration of the search space has been tried")
        return values

    def _next_of_first(self, space: Space) -> Values | None:
        while self._start or self._first:
            values = self._start or self._first.pop(0)
            self._start = {}
            try:
                point = partial_point(space, values, "first")
            except UserError as error:  # the search space is another one by now
                log.warning("%s", error)
                continue
            point = partial_point(space, values_of(space, point), "first")  # rounded
            if any(point.items() <= (trial.point or {}).items() for trial in self._trials.values()):
                continue
            if new := self._first_new(parzen.latin_hypercube(space, DRAWS, self._rng, point)):
                return new
        return None

    def _first_new(self, points: Iterable[Point]) -> Values | None:
        found = (values_of(self._space or {}, point) for point in points)
        return next((values for values in found if _key(values) not in self._trials), None)

    def _proposals(self, space: Space) -> list[Point]:
        known = [trial for trial in self._trials.values() if trial.point is not None]
        if len(known) < self.args.n_startup_jobs and self._design:
            return [self._design.pop(), *parzen.latin_hypercube(space, SPARE, self._rng)]
        model = parzen.Model(space, *self._split(known), self.args.prior_weight)
        return model.propose(self.args.n_ei_candidates, self._rng)

    def _split(self, known: Sequence[Observation]) -> tuple[list[Point], list[Point], list[Point]]:
        """Divide what is known into good, other and failed; one that runs counts as a lie."""
        done = [trial.loss for trial in known if trial.state == "done" and trial.loss is not None]
        lie = LIES.get(self.args.constant_liar_type or "")
        lied = float(lie(done)) if lie and done else math.inf
        ranked = sorted(
            (trial.state == "stopped", lied if trial.loss is None else trial.loss, number)
            for number, trial in enumerate(known)
            if trial.state in ("done", "stopped") or (trial.state == "running" and lie)
        )
        points = [known[number].point or {} for *_, number in ranked]
        best = min(
            math.ceil(self.args.gamma * len(points)), self.args.linear_forgetting, max(len(done), 1)
        )
        failed = [trial.point or {} for trial in known if trial.state == "failed"]
        return points[:best], points[best:], failed


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
