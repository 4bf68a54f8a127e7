"""A trial that NNI started: its parameters, and the way back for its scores.

`nni` is imported only where NNI started the process: it costs about three seconds of CPU.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ballot.engines.trial import Trial

TOLD = "NNI_"  # how the names begin of what NNI tells a trial in its environment
SEARCHED = "BALLOT_SEARCHED"  # the keys of the search space, from node/guard.js

UNGUARDED = (  # docs/nni.md
    "NNI runs without the guard: it may record this trial with another one's parameters "
    "(config.json here is right), and its portal is open to the network; "
    "python search.py --config FILE runs it guarded"
)


class NniReporter:
    """Reports scores to NNI's manager."""

    def epoch(self, score: float) -> None:
        """Report the monitored score of an epoch."""
        import nni

        nni.report_intermediate_result(score)

    def final(self, score: float, failed: bool) -> None:
        """Report the trial's score; only once, because NNI's tuner dies of a second (#5689)."""
        import nni

        nni.report_final_result({"default": score, "failed": 1} if failed else score)


def find_trial() -> Trial | None:
    """Ask NNI for this trial's parameters; None where it did not start this process.

    To be called once and before anything else: NNI hands its parameters to whichever trial asks
    first, so that a trial which fails before it asks shifts those of all others (#5726).
    """
    if os.environ.get("NNI_PLATFORM", "standalone") in ("standalone", "unittest"):
        return None
    import nni

    searched = os.environ.get(SEARCHED)
    return Trial(
        parameters=dict(nni.get_next_parameter() or {}),
        id=os.environ["NNI_TRIAL_JOB_ID"],
        experiment=os.environ["NNI_EXP_ID"],
        sequence=int(os.environ.get("NNI_TRIAL_SEQ_ID", 0)),
        searched=None if searched is None else tuple(json.loads(searched)),
        has_gpus=gpus_are_assigned(),
        reporter=NniReporter(),
        warning="" if os.environ.get("BALLOT_GUARD") == "1" else UNGUARDED,
    )


def gpus_are_assigned() -> bool:
    """Tell whether NNI chose this trial's GPUs: its environment then differs from the manager's."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mine is None:
        return False
    try:
        # A preloaded trial was forked elsewhere, and has been told who its command's parent is.
        parent = os.environ.get("BALLOT_PARENT", os.getppid())
        pairs = Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")
    except OSError:
        return True
    return f"CUDA_VISIBLE_DEVICES={mine}".encode() not in pairs
