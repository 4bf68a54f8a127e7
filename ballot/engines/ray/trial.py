"""A trial that runs on a node of a Ray cluster: its parameters, and the way back for its scores.

The task that started it reads what is appended to a file. Nothing here loads Ray.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ballot.engines.trial import Trial
from ballot.errors import UserError

TOLD = "BALLOT_RAY_"  # how the names begin of what a trial is told in its environment
TRIAL = f"{TOLD}TRIAL"  # the file that says which trial this is
REPORTS = "reports.jsonl"  # beside it


class FileReporter:
    """Appends scores to a file, a line each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def epoch(self, score: float) -> None:
        """Report the monitored score of an epoch."""
        self._append({"score": score})

    def final(self, score: float, failed: bool) -> None:
        """Report the trial's score."""
        self._append({"final": score, "failed": failed})

    def _append(self, said: dict[str, float | bool]) -> None:
        line = json.dumps(said) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def find_trial() -> Trial | None:
    """Return the trial that this process is; None where Ray did not start it."""
    place = os.environ.get(TRIAL)
    if place is None:
        return None
    try:
        told = json.loads(Path(place).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{TRIAL}: {place} cannot be read ({error}); unset it") from None
    return Trial(
        parameters=told["parameters"],
        id=told["id"],
        experiment=told["search"],
        sequence=told["sequence"],
        searched=None if told["searched"] is None else tuple(told["searched"]),
        has_gpus=told["has_gpus"],
        reporter=FileReporter(Path(place).with_name(REPORTS)),
    )
