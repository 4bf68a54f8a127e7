"""The one door between a trial and NNI: parameters in, scores out.

`nni` is imported only where NNI started the process: it costs about three seconds of CPU.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ballot.config.layers import Layer, flatten
from ballot.config.search_space import FIXED
from ballot.errors import UserError

FINAL = ("fold", "folds", "seed", "split_seed")  # what ensemble.py --finalize sets besides
SEARCHED = "BALLOT_SEARCHED"  # the keys of the search space, from guard.js

log = logging.getLogger(__name__)


@dataclass
class Trial:
    """What NNI says of this process; outside NNI nothing is asked and nothing is reported."""

    parameters: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    experiment: str | None = None
    sequence: int | None = None
    _unheard: bool = False

    @property
    def under_nni(self) -> bool:
        """Whether NNI started this process."""
        return self.id is not None

    @property
    def name(self) -> str | None:
        """A name for the run that sorts by the order of the trials and holds the trial's id."""
        return f"{self.experiment}-{self.sequence:03d}-{self.id}" if self.under_nni else None

    def mute(self) -> Trial:
        """Leave reporting to another process of the same trial."""
        self._unheard = True
        return self

    def report_epoch(self, score: float) -> None:
        """Report an epoch's monitored score."""
        self._report("report_intermediate_result", score)

    def report_final(self, score: float, *, failed: bool = False) -> None:
        """Report the trial's score; only once, because NNI's tuner dies of a second (#5689).

        The floor score of a trial that failed is said to be one, to tuners that listen.
        """
        self._report("report_final_result", score, {"failed": 1} if failed else {})

    def _report(self, function: str, score: float, more: Mapping[str, Any] | None = None) -> None:
        # NNI takes NaN as a score, and TPE then keeps it in its history.
        assert math.isfinite(score), "a score that is not finite is a failed trial"
        if not self.under_nni or self._unheard:
            return
        import nni

        try:
            getattr(nni, function)({"default": float(score), **more} if more else float(score))
        except Exception as error:  # whatever NNI's channel raises when its manager has died
            self._unheard = True
            log.warning("NNI does not answer (%s): this trial goes on without it", error)


def layer_of(trial: Trial) -> Layer:
    """Return what the tuner sets; a `UserError` where that is not for a tuner to set.

    Whoever reaches NNI's portal can post a trial with parameters of his own.
    """
    layer, searched = Layer("tuner", trial.parameters), os.environ.get(SEARCHED)
    if searched is not None:
        known = {*json.loads(searched), *FINAL}
        for key in trial.parameters:
            if key not in known:
                raise UserError(f"tuner: {key} is not in the search space; add it there to try it")
    for key, _ in flatten(layer):
        if key in FIXED:
            raise UserError(
                f"tuner: {key} cannot be searched, {FIXED[key]}; set it in trialCommand"
            )
    return layer


def warn_if_unguarded(trial: Trial) -> None:
    """Say what it means that NNI's manager was started without the guard (docs/nni.md)."""
    if trial.under_nni and os.environ.get("BALLOT_GUARD") != "1":
        log.warning(
            "NNI runs without the guard: it may record this trial with another one's parameters "
            "(config.json here is right), and its portal is open to the network; "
            "python search.py --config FILE runs it guarded"
        )


def current_trial() -> Trial:
    """Ask NNI for this trial's parameters.

    To be called once and before anything else: NNI hands its parameters to whichever trial asks
    first, so that a trial which fails before it asks shifts those of all others (#5726).
    """
    if os.environ.get("NNI_PLATFORM", "standalone") in ("standalone", "unittest"):
        return Trial()
    import nni

    return Trial(
        parameters=dict(nni.get_next_parameter() or {}),
        id=os.environ["NNI_TRIAL_JOB_ID"],
        experiment=os.environ["NNI_EXP_ID"],
        sequence=int(os.environ.get("NNI_TRIAL_SEQ_ID", 0)),
    )
