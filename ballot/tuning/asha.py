"""What to stop: asynchronous successive halving (ASHA; Li et al., 2020).

    asha = ASHA(mode="max", epochs=15)
    goes_on = asha.report("trial 7", [0.5, 0.6, 0.62])

A trial that comes to a rung (after 3 and 9 epochs of 15, say) goes on where its best score so far
is among the best third of all that have come there, and is stopped otherwise; nobody waits.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence

log = logging.getLogger(__name__)

EPOCHS = 30  # of a trial of which nobody knows how many it has
BEGIN = 0.2  # of the epochs until the first rung


class ASHA:
    """Stops a trial at a rung where it is not among the best 1 / `reduction_factor`.

    `start_step` is the first rung, in reports of a score (epochs); without it a fifth of a trial's
    `epochs`. `min_trials` must have come to a rung before one is stopped there. `mode` is `max` or
    `min`.
    """

    def __init__(
        self,
        *,
        mode: str = "max",
        epochs: int | None = None,
        start_step: int | None = None,
        reduction_factor: float = 3,
        min_trials: int = 2,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; it is max or min")
        for name, value, least in (
            ("start_step", start_step, 1),
            ("min_trials", min_trials, 1),
            ("reduction_factor", reduction_factor, 1.1),
        ):
            if value is not None and not (_is_number(value) and value >= least):
                raise ValueError(f"{name} is {value!r}; it is a number from {least} on")
        self._sign = 1 if mode == "max" else -1
        self.start_step = int(start_step or max(1, round(BEGIN * (epochs or EPOCHS))))
        self._factor, self._least = reduction_factor, min_trials
        self._rungs: dict[int, dict[str, float]] = {}  # epochs -> trial -> its best so far
        self._stopped: set[str] = set()

    def report(self, trial: str, scores: Sequence[float]) -> bool:
        """Return whether a trial goes on, from all its scores so far; one is stopped once."""
        signed = [self._sign * score for score in scores]
        good = True
        for rung in self._rungs_up_to(len(signed)):
            reached = self._rungs.setdefault(rung, {})
            if trial not in reached:  # a resumed trial reports its old epochs again
                reached[trial] = max(signed[:rung])
                good = good and self._is_among_the_best(reached, trial)
        if good or trial in self._stopped:
            return True
        self._stopped.add(trial)
        log.info("trial %s is stopped after %d reports", trial, len(scores))
        return False

    def _rungs_up_to(self, steps: int) -> list[int]:
        rungs, rung = [], float(self.start_step)
        while round(rung) <= steps:
            rungs.append(round(rung))
            rung *= self._factor
        return rungs

    def _is_among_the_best(self, reached: dict[str, float], trial: str) -> bool:
        if len(reached) < self._least:
            return True
        kept = sorted(reached.values(), reverse=True)[: math.ceil(len(reached) / self._factor)]
        return reached[trial] >= kept[-1]

    def state(self) -> str:
        """Return what trials have reached as JSON: by rung and trial, the best so far."""
        return json.dumps(self._rungs, indent=2) + "\n"

    def restore(self, text: str) -> None:
        """Take up what `state` returned; `ValueError` where it is damaged, and nothing changes."""
        try:
            known = json.loads(text)
            self._rungs = {int(rung): dict(reached) for rung, reached in known.items()}
        except (AttributeError, TypeError) as error:
            raise ValueError(str(error)) from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
